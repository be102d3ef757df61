"""Recorded sessions over a real connection, with a client that knows nothing of them."""

import asyncio
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from endpoints import Loopback, loopback, saying

from interlock.errors import Overloaded
from interlock.records.rl import Completion, FinishReason
from interlock.serve.http.refusals import Refusal
from interlock.serve.sessions.chat import ask

OTHER_KEY = "second-" * 3


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Loopback]:
    with loopback(tmp_path, lambda tokenizer: saying(tokenizer, "Hé.", "No")) as running:
        yield running


def created(running: Loopback, **body: Any) -> dict[str, Any]:
    response = running.post("/sessions", body)
    assert response.status_code == 201
    told: dict[str, Any] = response.json()
    return told


def said(running: Loopback, session: dict[str, Any], messages: list[Any], **more: Any) -> Any:
    body = {"model": "tiny", "messages": messages, **more}
    return running.post(f"{session['base_url']}/chat/completions", body)


def record(running: Loopback, session: dict[str, Any]) -> dict[str, Any]:
    with running.client() as client:
        found: dict[str, Any] = client.get(f"/sessions/{session['id']}").json()
    return found


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def streamed_text(text: str) -> str:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line)["choices"] for line in lines]
    return "".join(c[0]["delta"].get("content") or "" for c in chunks if c)


def test_an_episode_is_recorded_as_it_was_drawn(served: Loopback) -> None:
    session = created(served, metadata={"problem": "p1"})
    first = said(served, session, [user("hi")])
    message = first.json()["choices"][0]["message"]
    assert message["content"] == "Hé."
    assert first.headers["x-interlock-turn"] == "0"
    assert first.headers["x-interlock-turn-cause"] == "first"
    second = said(served, session, [user("hi"), message, user("and?")], stream=True)
    assert second.headers["x-interlock-turn-cause"] == "extends"
    assert streamed_text(second.text) == "Hé."
    one, two = served.replicas.asked
    encode, end = served.endpoint.tokenizer.encode, served.endpoint.tokenizer.eos_id
    drawn = [*encode("Hé."), end]
    assert one.prompt == encode("user:hi\n")
    # This template closes no turn with a token: its line break follows what was drawn.
    assert two.prompt == one.prompt + drawn + encode("\nuser:and?\n")
    found = record(served, session)
    [branch] = found["branches"]
    assert branch["prompt_tokens"] == one.prompt
    completion = msgspec.convert(branch["completion"], Completion)
    assert completion.tokens == drawn + encode("\nuser:and?\n") + drawn
    assert completion.weight_versions == [3, 3]
    given = len(encode("\nuser:and?\n"))
    assert completion.logprobs == [-0.5] * 5 + [0.0] * given + [-0.5] * 5
    assert (completion.finish, completion.text) == (FinishReason.STOP, "Hé.")
    assert found["weight_versions"] == [3] and found["metadata"] == {"problem": "p1"}
    assert found["usage"] == {
        "prompt_tokens": len(one.prompt) + len(two.prompt),
        "completion_tokens": 10,
        "total_tokens": len(one.prompt) + len(two.prompt) + 10,
        "cached_tokens": 4,
    }
    turns = [(turn["number"], turn["parent"], turn["cause"]) for turn in found["turns"]]
    assert turns == [(0, None, "first"), (1, [0, 0], "extends")]


def test_a_session_is_recorded_whichever_route_is_asked(served: Loopback) -> None:
    session = created(served)
    base, talk = session["base_url"], [user("hi")]
    with served.client() as client:
        body: dict[str, Any] = {"model": "tiny", "max_tokens": 20, "messages": talk}
        first = client.post(f"{base}/messages", json=body).json()
        talk += [{"role": "assistant", "content": first["content"]}, user("and?")]
        second = client.post(f"{base}/messages", json=body | {"stream": True})
        items = [user("hi"), {"role": "assistant", "content": "Hé."}, user("and?")]
        items += [{"role": "assistant", "content": "Hé."}, user("so?")]
        third = client.post(f"{base}/responses", json={"model": "tiny", "input": items})
        items += [*third.json()["output"], user("end")]
        body = {"model": "tiny", "input": items, "stream": True}
        fourth = client.post(f"{base}/responses", json=body)
    causes = [each.headers["x-interlock-turn-cause"] for each in (second, third, fourth)]
    assert causes == ["extends"] * 3
    [recorded] = served.endpoint.sessions.owned("key-1")
    prompts = [generation.prompt for generation in served.replicas.asked]
    assert all(b[: len(a)] == a for a, b in pairwise(prompts))
    [branch] = recorded.branches()
    assert branch.turns == [0, 1, 2, 3] and sum(branch.completion.mask) == 20
    served.replicas.overloaded = True
    body = {"model": "tiny", "max_tokens": 5, "messages": [user("x")]}
    refused = served.post(f"{base}/messages", body)
    assert refused.status_code == 429
    served.stop()
    served.thread.join(20)  # so that the streams are over for the server too
    assert recorded.open == 0


def test_choices_and_edits_are_branches_with_a_cause(served: Loopback) -> None:
    session = created(served)
    told = said(served, session, [user("hi")], n=2).json()["choices"]
    assert [choice["message"]["content"] for choice in told] == ["Hé.", "No"]
    no = {"role": "assistant", "content": "No"}
    said(served, session, [user("hi"), no, user("why?")])
    edited = said(served, session, [user("hi"), no | {"content": "Yes"}, user("why?")])
    assert edited.headers["x-interlock-turn-cause"] == "messages"
    found = record(served, session)
    assert found["branches_by_cause"] == {"messages": 1}
    assert [branch["turns"] for branch in found["branches"]] == [[0], [0, 1], [2]]
    assert found["turns"][1]["parent"] == [0, 1]


def test_who_leaves_is_counted_and_holds_nothing(served: Loopback) -> None:
    session = created(served)
    served.replicas.hold()
    served.replicas.step(2)
    body = {"model": "tiny", "messages": [user("hi")], "stream": True}
    path = f"{session['base_url']}/chat/completions"
    with served.client() as client, client.stream("POST", path, json=body) as response:
        next(response.iter_raw())
    served.replicas.wait_until(lambda: bool(served.replicas.cancelled))
    served.stop()
    served.thread.join(20)
    [recorded] = served.endpoint.sessions.owned("key-1")
    assert (recorded.open, recorded.record.broken, recorded.branches()) == (0, 1, [])


def test_a_request_that_is_refused_leaves_no_trace(served: Loopback) -> None:
    session = created(served)
    [recorded] = served.endpoint.sessions.owned("key-1")
    served.replicas.overloaded = True
    assert said(served, session, [user("hi")]).status_code == 429
    served.replicas.overloaded = False
    for bad in ({"messages": []}, {"messages": [user("hi")], "max_tokens": 10**6}):
        assert said(served, session, **bad).status_code == 400
    assert said(served, session, [user("x" * 600)]).status_code == 400
    assert (recorded.open, recorded.record.turns) == (0, [])
    assert said(served, session, [user("hi")]).headers["x-interlock-turn-cause"] == "first"


def test_a_session_is_its_key_s_own(served: Loopback) -> None:
    session = created(served)
    path = f"/sessions/{session['id']}"
    with served.client(key=OTHER_KEY) as other, served.client() as client:
        assert other.get(path).status_code == 404
        assert other.delete(path).status_code == 404
        assert other.get("/sessions").json()["data"] == []
        assert [each["id"] for each in client.get("/sessions").json()["data"]] == [session["id"]]
        models = client.get(f"{path}/v1/models").json()
        assert models["data"][0]["id"] == "tiny"
        assert client.delete(path).json() == {
            "id": session["id"],
            "object": "session.deleted",
            "deleted": True,
        }
        gone = client.get(path)
        unknown = client.get("/sessions/..%2F..%2Fetc")
    assert gone.status_code == 404 and gone.json()["error"]["code"] == "session_not_found"
    assert unknown.status_code == 404
    with served.client(key=None) as nobody:
        for each in ("/sessions", path, f"{path}/v1/models"):
            assert nobody.get(each).status_code == 401
        assert nobody.post("/sessions", json={}).status_code == 401
        assert nobody.post(f"{path}/v1/chat/completions", json={}).status_code == 401


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"limits": {"turns": 0}}, "limits.turns"),
        ({"seed": 1.5}, "seed"),
        ({"past_thinking": "drop"}, "past_thinking"),
        ({"sead": 1}, "sead"),
        ({"metadata": {"a": "x" * 20_000}}, "metadata"),
    ],
)
def test_terms_that_cannot_be_are_refused(
    served: Loopback, body: dict[str, Any], param: str
) -> None:
    response = served.post("/sessions", body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_session_that_is_full_says_so(served: Loopback) -> None:
    session = created(served, limits={"turns": 1})
    said(served, session, [user("hi")])
    full = said(served, session, [user("hi"), user("more")])
    assert full.status_code == 400 and "has had its 1 turns" in full.json()["error"]["message"]
    sessions = served.endpoint.sessions
    for _ in range(4095):
        sessions.create("key-1")
    refused = served.post("/sessions", {})
    assert refused.status_code == 429 and refused.headers["retry-after"] == "30"
    with pytest.raises(Overloaded):
        sessions.create("key-1")


def test_seeds_are_the_session_s_unless_a_request_names_one(served: Loopback) -> None:
    for seed in (7, 7, 8):
        session = created(served, seed=seed)
        said(served, session, [user("hi")])
        said(served, session, [user("hi"), user("again")])
    said(served, created(served, seed=7), [user("hi")], seed=5)
    seeds = [generation.seed for generation in served.replicas.asked]
    assert seeds[:2] == seeds[2:4] and len(set(seeds)) == 5 and seeds[-1] == 5


def test_an_environment_in_the_process_asks_without_http(served: Loopback) -> None:
    endpoint = served.endpoint
    session = endpoint.sessions.create("environment")
    talk = [user("hi")]

    def asked(body: dict[str, Any]) -> dict[str, Any]:
        question = ask(endpoint, session, body)
        return asyncio.run_coroutine_threadsafe(question, served.loop).result(20)

    talk.append(asked({"messages": talk})["choices"][0]["message"])
    talk.append(user("and?"))
    answer = asked({"messages": talk, "n": 2})
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["Hé.", "No"]
    one, two = session.completions()
    assert one.mask == [True] * 5 + [False] * 11 + [True] * 5
    assert two.tokens == [*endpoint.tokenizer.encode("No"), endpoint.tokenizer.eos_id]
    for bad in ({"messages": talk, "stream": True}, {"messages": "x"}, {"messages": talk, "n": 0}):
        with pytest.raises(Refusal) as refused:
            asked(bad)
        assert refused.value.status == 400
    assert session.open == 0
