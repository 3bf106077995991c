"""Names that an entry of params.yaml must not have: reserved words, and names whose files would overwrite another's."""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.settings.check import check_name_case

RUNS = ("fit", "finetune", "distill")
"""Sections whose entries write `data/models/<run>` and `data/predictions/<run>.parquet`."""

RESERVED: Mapping[str, str] = {
    "backbone": "`start: backbone` and `run: backbone` mean the weights of the backbone",
    "scratch": "`start: scratch` means new weights",
    "none": "`teacher: none` means no teacher",
}


def unusable_names(named: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a problem for each reserved name, and for each run with the name of a run of another section.

    `named`: the names of the entries of each section.
    """
    return [*_reserved(named), *_shared(named)]


def _reserved(named: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for section, words in (*((section, tuple(RESERVED)) for section in RUNS), ("teach", ("none",))):
        for name in named.get(section, ()):
            if name.lower() in words:
                yield f"{section}.{name}: expected another name, since {RESERVED[name.lower()]}. Rename the entry."


def _shared(named: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for position, section in enumerate(RUNS[1:], start=1):
        for name in named.get(section, ()):
            names = [run for earlier in RUNS[:position] for run in named.get(earlier, ())]
            if name in names:
                sections = " or ".join(f"`{earlier}`" for earlier in RUNS[:position])
                yield f"{section}.{name}: expected a name that no run of {sections} has. Rename one of the two."
            elif problem := check_name_case(name, [*names, name]):
                yield f"{section}.{name}: {problem}"
