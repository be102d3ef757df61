"""Teachers behind a URL: what they tell, and how they fail."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distilling import SOON, a_recipe, distilled
from scoring_endpoint import ScoringEndpoint, scoring

from interlock.config.distilling import TeacherSettings
from interlock.config.reading import load_recipe
from interlock.errors import TrainingError
from interlock.models.attention import causal
from interlock.models.checkpoint import load_decoder
from interlock.models.tokenizer import Tokenizer
from interlock.recipes import served_teacher
from interlock.recipes.check import check
from interlock.recipes.served_teacher import Read, ScoringClient
from interlock.recipes.teachers import find_teachers
from interlock.recipes.train import train


def test_an_endpoint_that_fails_for_a_moment_is_asked_again_and_its_key_is_told_nobody(
    student: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TEACHERS_KEY", "very-secret-key")

    def busy(path: str, number: int) -> tuple[int, bytes] | None:
        late = path == "/v1/completions" and number in (0, 2, 3, 14)
        return (429, b"slowly") if late else None

    with scoring(teacher, busy) as endpoint:
        more = f'url = "{endpoint.url}"\nkey_variable = "A_TEACHERS_KEY"\nbackoff_s = 0.01\n'
        recipe = a_recipe(tmp_path, student, more, 'loss = "policy_gradient"')
        logged = distilled(recipe, tmp_path / "run", "stage.steps=2")
    told = [line.teachers["teacher-0"].retries for line in logged]
    assert told == [2, 1]
    assert endpoint.keys == {"Bearer very-secret-key"}
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or b"very-secret-key" not in path.read_bytes()


def the_client(endpoint: ScoringEndpoint, **more: Any) -> ScoringClient:
    return ScoringClient("t", TeacherSettings(url=endpoint.url, backoff_s=0.01, **more))


def test_scores_of_a_text_are_the_decoders(teacher: Path) -> None:
    with scoring(teacher) as endpoint, the_client(endpoint) as client:
        assert client.check(endpoint.tokenizer, 3) == 255
        asked = client.tokens
        said = client.score([Read([5, 6, 7], [8, 9]), Read([1], [2])], 3, print)
    tokens = torch.tensor([5, 6, 7, 8, 9])
    attend = causal(5, tokens.device)
    with torch.no_grad():
        rows = endpoint.decoder.logits(endpoint.decoder(tokens, attend.positions, attend))
    exact = rows.log_softmax(-1)[2:4]
    assert said[0].own == pytest.approx([exact[0, 8].item(), exact[1, 9].item()])
    assert said[0].ids == exact.topk(3).indices.tolist()
    assert said[0].logprobs[1] == pytest.approx(exact[1].topk(3).values.tolist())
    assert len(said[1].own) == 1 and client.tokens == asked + 7 and client.retries == 0


ANSWERS = {
    "no log-probabilities of the prompt": [
        b'{"choices": []}',
        b'{"choices": [{"text": "x"}]}',
        b'{"choices": [{"prompt_logprobs": null}]}',
        b'{"choices": [{"prompt_logprobs": [null]}]}',
        b'{"choices": [{"prompt_logprobs": [null, {"3": {"logprob": -1}}]}]}',
        b'{"choices": [{"prompt_logprobs": [null, {"2": {"logprob": NaN}}]}]}',
        b'{"choices": [{"prompt_logprobs": [null, {"2": {"logprob": 0.5}}]}]}',
        b'{"choices": [{"prompt_logprobs": [null, {"2": {"logprob": -Infinity}}]}]}',
        b'{"choices": [{"prompt_logprobs": [null, {"2": {"logprob": -1e999}}]}]}',
        b"[1]",
    ],
    "no JSON": [b"<html>", b"\xff"],
}


@pytest.mark.parametrize(
    ("what", "content"), [(what, each) for what, found in ANSWERS.items() for each in found]
)
def test_an_answer_that_is_none_is_one_error(teacher: Path, what: str, content: bytes) -> None:
    with (
        scoring(teacher, lambda path, number: (200, content)) as endpoint,
        the_client(endpoint, served="the-teacher") as client,
        pytest.raises(TrainingError, match=f"teacher 't' tells {what}"),
    ):
        client.score([Read([1], [2])], 0, print)


def test_a_refusal_is_told_at_once_and_a_long_answer_is_cut(teacher: Path) -> None:
    with scoring(teacher) as endpoint:
        faults = {
            r"refuses /v1/completions, HTTP 401: whose": (401, b'{"error": {"message": "whose?"}}'),
            "more than 1 MB; raise most_mb": (200, b" " * (2 << 20)),
        }
        for words, told in faults.items():
            endpoint.fault = lambda path, number, told=told: told
            with the_client(endpoint, served="the-teacher", most_mb=1) as client:
                with pytest.raises(TrainingError, match=words):
                    client.score([Read([1], [2])], 0, print)
                assert client.retries == 0


def test_a_teacher_that_is_not_there_is_one_error_after_its_patience(
    student: Path, tmp_path: Path
) -> None:
    recipe = a_recipe(tmp_path, student, f'url = "http://127.0.0.1:9"\n{SOON}', 'loss = "topk"')
    with pytest.raises(TrainingError, match=r"'teacher-0' at http://127\.0\.0\.1:9: .*within 3 s"):
        train(load_recipe(recipe, []), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("where", "answer", "told"),
    [
        ("", None, "not answered within 3 s: start it, or mend the teacher's url"),
        ("/v1/models", (404, b"none here"), "HTTP 404: none here; see that url and served are"),
        ("/v1/models", (200, b'{"data": []}'), "; name one of its models with served, or mend url"),
        ("/v1/models", (307, b""), "; give the url that it leads to, which no request follows"),
        ("/v1/models", (401, b"who?"), "HTTP 401: who?; name the environment variable that holds"),
        ("/tokenize", (404, b"{}"), "refuses /tokenize, HTTP 404: {}; see that url and served"),
        ("/v1/completions", (400, b"5 at most"), "400: 5 at most; mend what it names; alternati"),
        ("/v1/completions", (200, b'{"choices": [{}]}'), "must have /tokenize, and /v1/completi"),
    ],
)
def test_an_endpoint_that_is_none_is_one_line_of_a_check(
    where: str,
    answer: tuple[int, bytes] | None,
    told: str,
    student: Path,
    teacher: Path,
    tmp_path: Path,
) -> None:
    with scoring(teacher, lambda path, number: answer if path == where else None) as endpoint:
        url = endpoint.url if where else "http://127.0.0.1:9"
        recipe = a_recipe(tmp_path, student, f'url = "{url}"\n{SOON}', 'loss = "topk"')
        (mistake,) = check(load_recipe(recipe, []), tmp_path / "run").mistakes
    assert mistake.startswith("stage 0 (distill): teacher 'teacher-0' ")
    assert told in mistake and "\n" not in mistake and "--resume" not in mistake
    assert not (tmp_path / "run").exists()


def test_a_key_that_is_not_taken_is_looked_for_where_it_is(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TEACHERS_KEY", "very-secret-key")
    with (
        scoring(teacher, lambda path, number: (403, b"no")) as endpoint,
        the_client(endpoint, key_variable="A_TEACHERS_KEY") as client,
        pytest.raises(TrainingError, match="no; see that A_TEACHERS_KEY, the key_variable") as told,
    ):
        client.check(endpoint.tokenizer, 3)
    assert "very-secret-key" not in str(told.value)


def test_an_endpoint_that_tells_too_few_alternatives_is_met_before_the_run(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    def few(path: str, number: int) -> tuple[int, bytes] | None:
        refused = b'{"error": {"message": "16 are more than 5 prompt_logprobs"}}'
        return (400, refused) if path == "/v1/completions" else None

    with scoring(teacher, few) as endpoint:
        recipe = a_recipe(tmp_path, student, f'url = "{endpoint.url}"', 'loss = "topk"')
        with pytest.raises(TrainingError, match="HTTP 400: 16 are more than 5"):
            train(load_recipe(recipe, []), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_interlock_serve_tells_what_the_decoder_in_the_process_does(teacher: Path) -> None:
    command = [sys.executable, "-m", "interlock.cli", "serve", str(teacher), "--port", "0"]
    clean = {k: v for k, v in os.environ.items() if k != "INTERLOCK_API_KEY"}
    key = {"INTERLOCK_API_KEY": "k" * 24}
    process = subprocess.Popen(
        [*command, "--dtype", "float32", "replica.slots=4"],
        stderr=subprocess.PIPE,
        text=True,
        env=clean | key,
    )
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "is served at" in line)
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("A_KEY", "k" * 24)
            opened = ScoringClient("t", TeacherSettings(url=found[0], key_variable="A_KEY"))
        texts = [Read(list(range(10, 10 + n)), list(range(100, 100 + 2 * n))) for n in (1, 5, 20)]
        with opened as client:
            assert client.check(Tokenizer.load(teacher), 3) > 0
            said = client.score(texts, 8, print)
    finally:
        process.kill()
        process.wait(60)
    decoder = load_decoder(teacher, torch.float32, torch.device("cpu"))
    for text, told in zip(texts, said, strict=True):
        tokens = torch.tensor(text.given + text.completion)
        attend = causal(len(tokens), tokens.device)
        with torch.no_grad():
            rows = decoder.logits(decoder(tokens, attend.positions, attend)).log_softmax(-1)
        exact = rows[len(text.given) - 1 : -1]
        own = exact.gather(1, torch.tensor(text.completion)[:, None])[:, 0]
        assert told.own == pytest.approx(own.tolist(), abs=1e-4)
        for ids, values, row in zip(told.ids, told.logprobs, exact, strict=True):
            assert values == pytest.approx(row.topk(8).values.tolist(), abs=1e-4)
            assert values == pytest.approx(row[torch.tensor(ids)].tolist(), abs=1e-4)


def test_no_connection_stays_open_behind_a_check_that_fails(
    student: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[Any] = []
    opened = served_teacher._service

    def kept(*given: Any) -> Any:
        clients.append(opened(*given))
        return clients[-1]

    monkeypatch.setattr(served_teacher, "_service", kept)
    words = Tokenizer.load(student)
    with scoring(teacher) as endpoint:
        there = TeacherSettings(url=endpoint.url)
        found = find_teachers([there], words, 64, 3)
        assert found.places == ["the-teacher"] and [each.closed for each in clients] == [True]
        lost = TeacherSettings(url="http://127.0.0.1:9", patience_s=0.1, backoff_s=0.01)
        with pytest.raises(TrainingError, match="teacher-1"):
            find_teachers([there, lost], words, 64, 3)
    assert [each.closed for each in clients] == [True] * 3
