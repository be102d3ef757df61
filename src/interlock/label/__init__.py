"""Labels: how a model stands to the problems of a data set, and which of them are wrong.

    DATA ──measuring.py: answers under the model, judged──> labels.jsonl, a row a problem
                                                             └──marks.py: too easy, too hard, …

The rows can be read by a person, go on where they stopped, and are what a review decides on.
"""
