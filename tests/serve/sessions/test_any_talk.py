"""Whatever is drawn and said, by whatever template: the record is that, to the token."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from session_talk import TEMPLATES, Talk

from interlock.records.rl import FinishReason

# Any token but the special ones, which would end the answer: halves of characters among them.
DRAWN = st.lists(st.integers(0, 259), max_size=12)
SAID = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TURN = st.tuples(SAID, DRAWN, st.booleans())


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(turns=st.lists(TURN, min_size=1, max_size=5))
def test_the_record_is_what_was_given_and_drawn(
    tmp_path: Path, name: str, turns: list[tuple[str, list[int], bool]]
) -> None:
    talk = Talk(tmp_path, name)
    before: list[int] = []
    mask: list[bool] = []
    for said, drawn, ends in turns:
        draft = talk.begin(said)
        assert draft.prompt[: len(before)] == before
        mask += [False] * (len(draft.prompt) - len(before))
        ids = drawn + talk.end if ends or not drawn else drawn
        finish = FinishReason.STOP if ends else FinishReason.LENGTH
        # Without "</think>", which templates take for the end of thinking, as they are to.
        content = talk.tokenizer.decode(ids).replace("</think>", "")
        talk.messages.append(talk.answer(draft, ids, finish=finish, content=content))
        draft.close()
        mask += [True] * len(ids)
        before = draft.prompt + ids
    [branch] = talk.session.branches()
    assert branch.prompt_tokens + branch.completion.tokens == before
    assert [False] * len(branch.prompt_tokens) + branch.completion.mask == mask
    assert talk.session.record.tokens == len(before)
