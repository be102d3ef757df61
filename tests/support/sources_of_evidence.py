"""Sources as the verbs themselves write them, each by its own writer, and a reader of the page."""

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from findings import findings_for

from interlock.chips import certificates
from interlock.chips.speeds import Speed, Table
from interlock.chips.verdict import judge
from interlock.cli import main
from interlock.config.schema import GuardSettings
from interlock.mismatch import Mismatch
from interlock.parity import page as parity_page
from interlock.parity.figures import Accuracy, Difference, Greedy, TaskResult
from interlock.parity.outcome import Report, SideFacts, Weights, judged
from interlock.preflight import folder
from interlock.preflight.folder import Identity, Preflight, SectionRecord, Status
from interlock.qualify.fleet import page as fleet_page
from interlock.qualify.fleet.found import DeviceFound, FleetFound, LinkFound, NodeFound
from interlock.qualify.fleet.verdict import troubles
from interlock.records.metrics import StepMetrics, StepSeconds, WorkerMetrics, WorkerState
from interlock.records.sealing import SealedDocument, sealed
from interlock.records.trust import Certificate, Measure, Result, Stack, Trust
from interlock.rundir import RunDir

RECIPE = Path(__file__).parents[2] / "src" / "interlock" / "recipes" / "shipped" / "r1-zero.toml"
REAL = Stack("npu", "Chip 9", "1.2", torch="2.13.0", plugin="torch_npu 2.13.0", interlock="0.1.0")
SIMULATED = Stack("sim", "Interlock simulated accelerator", "wrong-backward", torch="2.13.0")
# 3 and 200 times what is allowed, one right, and one that is no number.
MEASURES = [
    Measure("mm [2, 3]", 6e-3, 2e-3, 1e-4),
    Measure("silu [5]", 0.5, 2.5e-3, None),
    Measure("exp [7]", 1e-3, 2e-3, 1e-4),
    Measure("log [9]", float("nan"), 2e-3, 1e-4),
]
HALF_AND_QUARTER = (Accuracy(0.5, 0.28, 0.72, 0.5), Accuracy(0.25, 0.1, 0.49, 0.25))
PRICES = """[[price]]
chip = "H20"
per_hour = 1.25
currency = "USD"
date = 2026-11-20
source = "contract 4711"
"""


def certificate(
    path: Path,
    trust: Trust = Trust.GENERATE,
    stack: Stack = REAL,
    claimed: Trust | None = None,
    **changes: Any,
) -> Path:
    """certificate.json with findings for `trust`; what failed has MEASURES."""
    findings = [
        msgspec.structs.replace(each, measures=MEASURES, summary="3 of 4 cases are wrong")
        if each.result is Result.FAIL
        else each
        for each in findings_for(trust)
    ]
    device = "sim:wrong-backward" if stack.kind == "sim" else "npu:0"
    made = Certificate(
        stack, device, 2, "quick", claimed or trust, judge(findings)[1], findings, 86400.0
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    certificates.save(certificates.seal(msgspec.structs.replace(made, **changes)), path)
    return path


def parity(
    path: Path,
    k3: float = 0.0207,
    label: str = "torch:sim:decode-drift",
    stack: Stack | None = None,
) -> Path:
    """parity.json in a folder. `stack`: of the device on side b; None: neither side tells."""
    host = None if stack is None else Stack("cpu", "a CPU")
    report = Report(
        "m",
        *(SideFacts("torch:cpu", "torch", "cpu", "float32", host),),
        *(SideFacts(label, "torch", label.partition(":")[2], "float32", stack),),
        GuardSettings(),
        Weights(272, [], [], [], []),
        [],
        [Difference("B against A", "ab", Mismatch(411, k3, 0.614, 0.25), 0.0, 0.0, 0.0)],
        Greedy(26, 24, [3, 5]),
        [],
        TaskResult("arithmetic", 16, *HALF_AND_QUARTER, 4, 0, 0.125),
        *(None, [], 0, 1.0, 86400.0, "0.1.0"),
    )  # fmt: skip
    parity_page.write(judged(report), path)
    return path / "parity.json"


def fleet(path: Path) -> Path:
    """A folder with fleet.json and a certificate of each device; one of them is rejected."""
    found = FleetFound("hosts", "quick", [], "0.1.0", 86400.0)
    trusts = {"n0": Trust.TRAIN, "n1": Trust.REJECT}
    for name, trust in trusts.items():
        device = DeviceFound("npu:0", f"nodes/{name}/0", "npu", "Chip 9", trust, done=True)
        if trust is Trust.REJECT:
            device.failed = ["forward failed: 3 of 4 cases are wrong"]
        found.nodes.append(NodeFound(name, "10.0.0.1", devices=[device]))
        stack = msgspec.structs.replace(REAL, serial=name)
        certificate(path / device.folder / "certificate.json", trust, stack)
    found.links = [LinkFound("n0", "n1", "npu", 1.5e8, 2.5e8, 4e-4)]
    found.troubles = troubles(found.nodes, found.links, None)
    fleet_page.write(found, path)
    return path


def preflight(path: Path, tmp_path: Path, stack: Stack = REAL) -> Path:
    """A folder whose qualify has a certificate and whose decode has a speed."""
    path.mkdir()
    certificate(tmp_path / "own" / "certificate.json", Trust.TRAIN, stack)
    files = {"certificate.json": tmp_path / "own" / "certificate.json"}
    folder.keep(path, "qualify", files, "", Path("/nowhere"))
    folder.keep(path, "decode", {}, "", Path("/nowhere"))
    sections = [
        SectionRecord(
            name=name,
            status=Status.DONE,
            headline=f"{name} is done",
            command=f"python -m {name}",
            figures=figures,
            ended=86400.0,
            results=folder.digests(path, name),
        )
        for name, figures in (("qualify", {}), ("decode", {"qwen3-8b, 64 rows: tokens/s": 1234.5}))
    ]
    name = "sim:wrong-backward" if stack.kind == "sim" else "npu:0"
    found = Preflight(
        device=name, model="m", minutes=9.0, identity=Identity(stack), sections=sections
    )
    folder.write(path, found)
    return path


def bench(path: Path, stack: Stack = REAL) -> Path:
    """As `interlock bench --json` prints it."""
    speeds = [Speed("float32", "torch", 20.0, 30.0, 1e-7), Speed("bfloat16", "torch", 0, 0, 0)]
    speeds += [Speed("bfloat16", "onednn", 458.0, 464.0, 1.7e-3)]
    taken = {"dtype": "bfloat16", "generator": "onednn", "learner": "onednn"}
    tree = {"measured": Table(stack.chip, 2, speeds, waited=0.449), "taken": taken}
    tree |= {"stack": stack, "device": "npu:0", "created": 86400.0}
    path.write_bytes(msgspec.json.encode(sealed(SealedDocument.BENCH, tree)))
    return path


def plan(path: Path, chips: str, *more: str) -> Path:
    """What `interlock plan --json` prints."""
    prices = path.parent / "prices.toml"
    prices.write_text(PRICES)
    asked = ["plan", str(RECIPE), "--chips", chips, "--model", "Qwen3-8B", "--json"]
    with redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as end:
        main([*asked, "--prices", str(prices), *more])
    assert not end.value.code
    path.write_text(out.getvalue())
    return path


def run(
    path: Path,
    device: str = "sim:matmul-bf16",
    learner: Stack | None = None,
    chip: str | None = None,
    serial: str | None = None,
) -> Path:
    """Two steps. The worker "bad" sampled 300 tokens in 2 s, and was put in quarantine twice.
    `chip`, `serial`: of its device; None: an older version did not log them.
    """
    config = {"name": "mine", "model": {"path": "m"}}
    with RunDir.create(path, config, {"interlock": "0.1.0", "torch": "2.13.0"}) as made:
        for step, (tokens, seconds) in enumerate([(100, 0.5), (300, 2.0)], start=1):
            bad = WorkerMetrics(
                WorkerState.QUARANTINED if step == 2 else WorkerState.GENERATING,
                "torch",
                device,
                "float32",
                "unqualified",
                chip=chip,
                serial=serial,
                groups=4 * step,
                tokens=tokens,
                seconds_generating=seconds,
                dropped=step,
                canary_k3=1.8e-4,
                mismatch={0: Mismatch(tokens, 1e-3 * step)},
            )
            made.log(
                StepMetrics(
                    stage=0,
                    step=step,
                    accuracy=0.25 * step,
                    workers={"bad": bad},
                    seconds=StepSeconds(step=10.0 * step),
                )
            )
        if learner is not None:
            made.computes_on(learner)
        made.event("worker_quarantined", "k3 0.00018 is more than 1e-05", worker="bad")
        made.event("worker_quarantined", "it stays out", worker="bad")
    return path


class ReadBack(HTMLParser):
    """A page read back: what is cited, what is said beside it, footnotes and their links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cited: list[dict[str, str]] = []
        self.spoken = ""  # of sentences and cells, without what is cited and without footnotes
        self.words = ""
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._open: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        assert self._open == []
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        self.tags.append((tag, own))
        if tag not in ("meta", "rect"):
            self._open.append((tag, own))
        if tag == "data":
            self.cited.append(own | {"shown": ""})

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self._open.pop()[0] == tag
        if tag in ("li", "td", "th", "p"):
            self.words += " "

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self._open]
        if "style" in tags:
            return
        self.words += data
        if "data" in tags:
            self.cited[-1]["shown"] += data
        elif {"li", "td"} & set(tags) and "sup" not in tags and not self._in_notes():
            self.spoken += data

    def _in_notes(self) -> bool:
        return any("notes" in own.get("class", "").split() for _, own in self._open)

    def said(self) -> set[str]:
        return {each["shown"] for each in self.cited}


Edit = Callable[[dict[str, Any]], None]


def edited(path: Path, edit: Edit) -> Path:
    tree = json.loads(path.read_text())
    edit(tree)
    path.write_text(json.dumps(tree))
    return path
