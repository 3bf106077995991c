"""params.yaml: read, checked against the settings models of all stages, and described.

params     read the file as DVC reads it
check      check values against the models; the base class `Settings`
messages   pydantic's errors in the words of YAML
repair     go on with an entry that is wrong in part
reference  list every setting
"""
