"""A model as a judge: answers are scored by a model behind an OpenAI-compatible URL.

    (problem, answer) ──> questions.asked ──> client.JudgeClient ── POST /chat/completions ──>
                             nonce, schema      retries, deadline, cost
    Verdict <── panel.Judge <── questions.graded: the score, strictly <──────────────────────

docs/code_rewards.md.
"""
