"""A reward from the user's own file, by the rules of a verifier of one's own (user_verifier.py).

The function gives a finite number within the bounds that its settings declare.
"""

from contextlib import chdir

from interlock.config.rewards import PythonReward
from interlock.config.tasks import TaskSettings
from interlock.records.rl import Attempt
from interlock.tasks.returned import verdict_of
from interlock.tasks.rewards import Reward
from interlock.tasks.user_verifier import loaded, split_verifier


def open_reward(settings: PythonReward, task: TaskSettings) -> Reward:
    path, name = split_verifier(settings.function)
    path = path.resolve()
    folder = path.parent
    with chdir(folder):
        function = loaded(f"{path}:{name}", f"user_reward_{settings.called}")

    def reward(attempt: Attempt) -> float:
        with chdir(folder):
            return verdict_of(function(attempt.problem, attempt.text)).reward

    return reward
