"""What facts mean: lines, each with the remedy. Nothing is looked up here.

Machine ── diagnose ──> Diagnosis: ok │ missing │ trap │ wrong      (finding.py)
             ├─ the interpreter, torch, cores, memory, disk, the sandbox
             ├─ devices.py   of each vendor that the machine shows
             └─ packages.py  Interlock's extras
"""

import math
from collections.abc import Iterator

import msgspec

from interlock.doctor.devices import builds, concerned, diagnose_devices
from interlock.doctor.finding import Diagnosis, State, fits
from interlock.doctor.machine import Machine
from interlock.doctor.packages import extras, wanted_torch
from interlock.text import hide_credentials, one_line

_GB = 1e9
_DEMO_BYTES = 3.5e9  # its peak memory
_DISK_BYTES = 2e9  # of the demo: its model, its run and its environment
_SHARED_BYTES = 1e9  # 64 MB is what Docker gives; collectives and Ray want gigabytes


def diagnose(machine: Machine, asked: str | None = None) -> list[Diagnosis]:
    """What to know of a machine, for the devices it shows or for one that was asked for."""
    rows = concerned(machine, asked)
    lines = [
        _interpreter(machine),
        _torch(machine, plugins=any(row.plugin for row in rows)),
        *(line for row in rows for line in diagnose_devices(machine, row)),
        *_asked(machine, asked),
        *_cores(machine),
        *_room(machine),
        _sandbox(machine),
        *extras(machine),
    ]
    return [_printable(line) for line in lines]


def _printable(line: Diagnosis) -> Diagnosis:
    """What comes from files, tools and variables on one line, and without credentials."""
    return msgspec.structs.replace(
        line,
        text=one_line(hide_credentials(line.text)),
        remedy=one_line(hide_credentials(line.remedy)),
    )


def _interpreter(machine: Machine) -> Diagnosis:
    text = f"Python {machine.python}, Interlock {machine.interlock}, {machine.system}"
    return Diagnosis("python", State.OK, text)


def _torch(machine: Machine, plugins: bool) -> Diagnosis:
    torch, wanted = machine.torch, wanted_torch(machine)
    name = f"torch {torch.version}"
    if not torch.version:
        text, remedy = "torch is not installed", "pip install 'interlock[demo]'"
    elif torch.error:
        text, remedy = f"{name} fails: {torch.error}", "pip install --force-reinstall torch"
        if plugins:
            remedy = "mend its plugin, see below; TORCH_DEVICE_BACKEND_AUTOLOAD=0 goes without"
    elif not fits(torch.version, wanted) and "vllm" not in machine.packages:
        text, remedy = f"{name} is not {wanted}", f"pip install 'torch{wanted}'"
    else:
        built = builds(machine) or "CPUs alone"
        return Diagnosis("torch", State.OK, f"{name}, built for {built}")
    return Diagnosis("torch", State.WRONG, text, remedy)


def _asked(machine: Machine, asked: str | None) -> Iterator[Diagnosis]:
    """Whether the device that was asked for computes."""
    if asked is None or not machine.torch.version or machine.torch.error:
        return
    if refused := machine.torch.refused:
        remedy = "mend what is wrong above, or choose a device that is here"
        yield Diagnosis(asked, State.WRONG, refused, remedy)
    else:
        yield Diagnosis(asked, State.OK, "it computes")


def _cores(machine: Machine) -> Iterator[Diagnosis]:
    cores = min(filter(None, (machine.cores, math.ceil(machine.quota))), default=0)
    if not cores:
        return
    remedy = f"export OMP_NUM_THREADS={cores}"
    told = machine.env.get("OMP_NUM_THREADS", "")
    threads = told.partition(",")[0].strip()
    if told and not (threads.isdigit() and int(threads)):
        text = f"OMP_NUM_THREADS={one_line(told, 40)} is no number of threads"
        yield Diagnosis("cores", State.WRONG, text, remedy)
    elif threads and int(threads) > cores:
        text = f"OMP_NUM_THREADS={threads} on {cores} cores: the threads wait for each other"
        yield Diagnosis("cores", State.WRONG, text, remedy)
    elif not threads and machine.cores > cores:
        text = f"{machine.cores} cores are seen, and {machine.quota:g} may be used: torch takes all"
        yield Diagnosis("cores", State.WRONG, text, remedy)
    else:
        limit = f", {machine.quota:g} CPUs by its control group" if machine.quota else ""
        one = f", OMP_NUM_THREADS={threads}" if threads else ""
        yield Diagnosis("cores", State.OK, f"{machine.cores} cores{limit}{one}")


def _room(machine: Machine) -> Iterator[Diagnosis]:
    if machine.memory:
        text = f"{machine.memory / _GB:.1f} GB of memory are free"
        yield _enough("memory", text, machine.memory, _DEMO_BYTES, "end what else runs here")
    if machine.shared_memory:
        text = f"{machine.shared_memory / _GB:.1f} GB are free in /dev/shm"
        remedy = "for a container: docker run --shm-size 16g …"
        yield _enough("memory", text, machine.shared_memory, _SHARED_BYTES, remedy)
    text = f"{machine.cache_free / _GB:.1f} GB are free for models in {machine.cache}"
    remedy = "make room, or set INTERLOCK_CACHE to another directory"
    yield _enough("disk", text, machine.cache_free, _DISK_BYTES, remedy)
    text = f"{machine.runs_free / _GB:.1f} GB are free for runs, here"
    yield _enough("disk", text, machine.runs_free, _DISK_BYTES, "make room, or use another --run")


def _enough(topic: str, text: str, found: float, wanted: float, remedy: str) -> Diagnosis:
    if found >= wanted:
        return Diagnosis(topic, State.OK, text)
    return Diagnosis(topic, State.MISSING, f"{text}; {wanted / _GB:g} GB are wanted", remedy)


def _sandbox(machine: Machine) -> Diagnosis:
    if machine.sandbox:
        return Diagnosis("sandbox", State.OK, f"{machine.sandbox} isolates what a model wrote")
    text = machine.sandbox_fault.partition("; allow ")[0]
    remedy = "allow user namespaces (docs/security.md); only tasks that execute answers need it"
    return Diagnosis("sandbox", State.MISSING, text, remedy)
