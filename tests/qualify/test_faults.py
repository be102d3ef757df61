"""Words of the vendors, and devices that recover or do not."""

import re
import time

import pytest

from interlock.chips import vendors
from interlock.chips.vendors import Origin
from interlock.qualify.faults import classify, recovers

SAID = [
    ("ACL stream synchronize failed, error code:507035", "507035", Origin.SOFTWARE),
    (
        "wait for compute device to finish failed, runtime result = 507018.",
        "507018",
        Origin.SOFTWARE,
    ),
    ("NPU function error: acl::AclQueryEvent, error code is 507014", "507014", Origin.SOFTWARE),
    ("error code is 507049", "507049", Origin.SOFTWARE),
    ("error code is 507054[Error]", "507054", Origin.HARDWARE),
    ("c10d::allreduce_: the link is down, error code is 507056", "507056", Origin.LINK),
    ("CUDA error: uncorrectable ECC error encountered", "uncorrectable ECC", Origin.HARDWARE),
    ("NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off", None, Origin.HARDWARE),
    ("CUDA error: an illegal memory access was encountered", None, Origin.SOFTWARE),
    ("CUDA error: device-side assert triggered", None, Origin.SOFTWARE),
    ("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(…)", None, Origin.LINK),
    ("hccl fftsplus task timeout occurred during task execution", None, Origin.LINK),
    ("Memory access fault by GPU node-1 (Agent handle: 0x55)", None, Origin.SOFTWARE),
    ("HIP out of memory. Tried to allocate 2.00 GiB", None, Origin.MEMORY),
    ("Native API failed. UR_RESULT_ERROR_DEVICE_LOST", None, Origin.HARDWARE),
    ("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer", None, Origin.PEER),
    ("NVRM: Xid (PCI:0000:3b:00): 31, pid=1, MMU Fault", None, Origin.SOFTWARE),
    ("NVRM: Xid (PCI:0000:3b:00): 119, Timeout after 6s of waiting", None, Origin.HARDWARE),
    ("Graph compile failed. synStatus=synStatus 26 [Generic failure].", None, Origin.SOFTWARE),
    ("synStatus=8 [Device not found] Device acquire failed.", None, Origin.SOFTWARE),
    ('"CNNL_STATUS_BAD_PARAM in cnnlSetTransposeDescriptor"', None, Origin.SOFTWARE),
    ("CNRT_RET_ERR_NOMEM", None, Origin.MEMORY),
    ("MTGPU:(Error): 56377: PID 1747 experienced error Guilty Lockup", None, Origin.SOFTWARE),
    ("Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)", None,
     Origin.MEMORY),
    ("UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY", None, Origin.MEMORY),
    ("error code 207018", "207018", Origin.MEMORY),
]  # fmt: skip


@pytest.mark.parametrize(("text", "code", "kind"), SAID, ids=lambda each: str(each)[:40])
def test_the_words_of_vendors_are_known(text: str, code: str | None, kind: Origin) -> None:
    fault = classify(f"Traceback\n  …\nRuntimeError: {text}\nmore")
    assert fault is not None
    assert fault.kind is kind
    assert code is None or fault.code == code
    assert fault.advice


def test_other_words_are_no_fault() -> None:
    assert classify("ValueError: expected 3 arguments") is None
    assert classify("CNNL_STATUS_SUCCESS, synStatus=0") is None
    assert classify("allocated 15070540 bytes at 0x507035a, 5070567 left, 0.507035 s") is None


def test_the_gravest_fault_counts() -> None:
    fault = classify("Connection closed by peer; out of memory; 507035; 507054")
    assert fault is not None and (fault.code, fault.kind) == ("507054", Origin.HARDWARE)
    fault = classify("Connection closed by peer, after error code is 507035")
    assert fault is not None and fault.code == "507035"


def test_every_pattern_is_a_regular_expression_that_something_matches() -> None:
    assert len({pattern for pattern, *_ in vendors.CODES}) == len(vendors.CODES) > 60
    for pattern, *_ in vendors.CODES:
        re.compile(pattern)
        if pattern.isdigit():
            fault = classify(f"error {pattern}.")
            assert fault is not None and fault.code == pattern


def test_what_explains_the_others_stands_first() -> None:
    order = [code.origin for code in vendors.CODES]
    assert order == sorted(order, key=list(Origin).index)
    assert (order[0], order[-1]) == (Origin.HARDWARE, Origin.PEER)


def test_a_sound_device_recovers() -> None:
    assert recovers("cpu", 60)


def test_a_device_that_is_not_there_does_not_recover() -> None:
    assert not recovers("cuda:99", 60)


def test_a_deadline_is_kept() -> None:
    began = time.monotonic()
    assert not recovers("cpu", 0.05)
    assert time.monotonic() - began < 20
