"""Read params.yaml, check it against the settings models of all stages, and describe the settings.

params     read the file as DVC reads it
check      check values against the models; the base class `Settings`
messages   write pydantic's errors in the words of YAML
repair     guess what a wrong entry meant, to check the rest of it
reference  list every setting
"""
