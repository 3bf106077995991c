"""Write the report: `python -m stages.report`."""

from pipeline.explain.errors import errors_of_best
from pipeline.report import leaderboard, trained
from pipeline.report.run import report
from stages import project


def main() -> None:
    """Write `data/report/index.html` for the runs in params.yaml, and print the leaderboard."""
    values = project.settings()
    names = list(project.runs(values))
    runs = leaderboard.read(project.TABLES, names)
    unmeasured = leaderboard.unmeasured(project.TABLES, names)
    report(
        values["report"],
        runs,
        project.REPORT,
        comparisons=project.COMPARISONS,
        audits=project.AUDITS,
        backbones=project.BACKBONES,
        footprints=project.METRICS / "distill",
        errors=errors_of_best(runs, project.MODELS),
        unmeasured=unmeasured,
    )
    print(leaderboard.text(runs))
    for runs_of_task in leaderboard.by_task(runs).values():
        for line in trained.below_probe(runs_of_task):
            print(f"note: {line}")
    for name, cause in unmeasured.items():
        print(f"{name}: not measured: {cause}")
    print(f"report: {project.REPORT}")


if __name__ == "__main__":
    project.run(main)
