from interlock.workers.looks import Looks


class Worker:
    def __init__(self) -> None:
        self.excused: list[float] = []
        self.delays: list[tuple[float, int | None]] = []

    def excuse(self, seconds: float) -> None:
        self.excused.append(seconds)

    def excuse_delay(self, passed: float, pid: int | None) -> None:
        self.delays.append((passed, pid))


def test_waits_are_measured_once_a_second_and_our_own_pauses_excused() -> None:
    looks, worker = Looks(100.0), Worker()
    for now in (100.5, 101.0, 101.5, 102.25, 110.25, 110.75, 111.25):
        passed = looks.look(now)
        passed.excuse(worker)
        passed.excuse_delay(worker, 7)
    # 101.0 and 102.25: a second is over. 110.25: nobody looked for 8 s, which is no wait of theirs.
    assert worker.excused == [8.0]
    assert worker.delays == [(1.0, 7), (1.25, 7), (0.0, 7), (1.0, 7)]
