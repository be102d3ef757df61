"""One self-contained HTML page per run, made from its run directory alone.

    run directory ── summary ──> figures and samples ┐
                  ── plots ────> plotly figures ─────┴─ page ──> report.html

Nothing here is needed to train. `summary` needs no plotly; the closing table of the terminal reads
it too.
"""

from pathlib import Path


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the report of a run, finished or not, to `out` (default: report.html inside the run).

    Returns the path written. Raises RunError when there is no run, its files are damaged, or the
    report cannot be written.
    """
    from interlock.report import page  # brings plotly, which reading a summary must not

    return page.write_report(run_dir, out)
