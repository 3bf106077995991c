"""Write the sections of params.yaml that a stage depends on as a whole: `python -m stages.settings`.

DVC cannot depend on a key that params.yaml lacks. Stages that read whole sections depend on these files instead, so
that a section may be left out, and a change of another section runs no stage again.
"""

from pipeline.files import fresh_folder, write_json
from pipeline.settings.params import read_params
from stages import project

SHARED = ("extract", "audit", "fit", "finetune", "distill", "evaluate", "compare", "report")
"""Sections that a stage reads as a whole."""


def main() -> None:
    """Write `data/settings/<section>.json`; a section that is left out is empty."""
    project.settings()
    raw = read_params(project.PARAMS)
    with fresh_folder(project.SETTINGS) as folder:
        for section in SHARED:
            write_json(folder / f"{section}.json", raw.get(section) or {})
    print(f"{', '.join(section for section in SHARED if section not in raw) or 'no section'} left out of params.yaml")


if __name__ == "__main__":
    project.run(main)
