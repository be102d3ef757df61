"""The language reward: shares of words by hand, and py3langid's verdict on real sentences."""

import msgspec
import pytest

from interlock.config.rewards import LanguageReward, reward_conflicts
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Attempt, Problem
from interlock.tasks.rewards.language import open_reward, share

TASK = TaskSettings("arithmetic")
SUM = Problem("p", [], "46")
ENGLISH = "First we add the tens, and then we add what is left over."  # 13 words
GERMAN = "Zuerst addieren wir die Zehner und danach den ganzen Rest."  # 10
CHINESE = "首先我们把十位数加起来然后再加上剩下的数"  # 20 signs


def value(text: str, **settings: object) -> float:
    return open_reward(msgspec.convert({"kind": "language", **settings}, LanguageReward), TASK)(
        Attempt(SUM, text)
    )


def test_words_count_by_the_sentence_that_they_are_in() -> None:
    for text in ("", "a b c", "one two. 1 + 2 = 3\n12 x"):
        assert share(text, "en", lambda text: "de") == 1.0, "nothing tells its language"
    heard: list[str] = []

    def identify(sentence: str) -> str:
        heard.append(sentence.strip())
        return "en" if "is" in sentence else "de"

    text = "This is it. Ja doch. Das war sehr lang hier!\n今天天气"
    assert share(text, "en", identify) == 3 / (3 + 5 + 4)
    assert heard == ["This is it", "Das war sehr lang hier", "今天天气"]


@pytest.mark.parametrize(
    ("text", "english", "german"),
    [
        (ENGLISH, 1.0, 0.0),
        (GERMAN, 0.0, 1.0),
        (f"{ENGLISH} {GERMAN}\n46", 13 / 23, 10 / 23),
        (f"{ENGLISH}\n{CHINESE}", 13 / 33, 0.0),
        ("12 + 34 = 46", 1.0, 1.0),
        ("46", 1.0, 1.0),
        ("", 1.0, 1.0),
        ("Danke sehr.", 1.0, 1.0),
        (f"46\n{GERMAN}", 0.0, 1.0),
    ],
)
def test_the_share_of_real_sentences(text: str, english: float, german: float) -> None:
    among = ["en", "de", "zh"]
    assert value(text, among=among) == pytest.approx(english)
    assert value(text, language="de", among=among) == pytest.approx(german)


def test_a_language_that_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(TaskError, match=r"knows no language 'qq'; it knows .*, en, "):
        value("", language="qq")
    settings = LanguageReward(language="en", among=["de", "fr"])
    assert list(reward_conflicts([settings])) == [
        "reward.language.among = ['de', 'fr'] is to name 'en' and another"
    ]
