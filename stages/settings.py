"""Write the sections of params.yaml that a stage depends on as a whole: `python -m stages.settings`.

DVC cannot depend on a key that params.yaml lacks. Stages that read whole sections depend on these files instead. So a
section may be left out, and a change of one section reruns only the stages that read it.
"""

from collections.abc import Sequence

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
    print(_describe([section for section in SHARED if not raw.get(section)]))


def _describe(empty: Sequence[str]) -> str:
    """Return which stages have no entries, and which run with default settings."""
    named = [section for section in empty if project.SECTIONS[section][1]]
    default = [section for section in empty if section not in named]
    parts = [f"no entries of {', '.join(named)}"] if named else []
    parts += [f"default settings of {', '.join(default)}"] if default else []
    return f"params.yaml: {'; '.join(parts) or 'settings in every section'}"


if __name__ == "__main__":
    project.run(main)
