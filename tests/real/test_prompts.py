"""A real language model told by examples in its prompt, scored by the labels' chances."""

import pytest

import mirada
from mirada.tasks import score

SHOTS = [("I loved every minute of it.", "positive"), ("A complete waste of money.", "negative")]
REVIEWS = [
    ("The best book I have read this year.", "positive"),
    ("Terrible service, I will never come back.", "negative"),
    ("What a wonderful, moving film.", "positive"),
    ("The room was dirty and smelled bad.", "negative"),
    ("Great value, works perfectly.", "positive"),
    ("Boring from start to finish.", "negative"),
    ("My children adore this toy.", "positive"),
    ("The battery died within an hour.", "negative"),
    ("Friendly people and a beautiful view.", "positive"),
    ("I want my money back.", "negative"),
]


@pytest.fixture(scope="module")
def model(real):
    return mirada.load(real("smollm2"))


@pytest.mark.scope("1.13.6")
@pytest.mark.parametrize("shots", [0, 2])
def test_labels_of_reviews_from_a_prompt_alone(model, shots):
    """Nothing is trained. By chance 5 of 10 would be right, and 9 or more in 1 of 93 tries."""
    told = [{"text": text, "label": label} for text, label in SHOTS[:shots]]
    found = [score.label(model, "sentiment", {"text": text}, ["positive", "negative"], told)
             for text, _ in REVIEWS]
    right = sum(best == label for ((best, _), _), (_, label) in zip(found, REVIEWS, strict=True))
    assert right >= 9
    assert all(abs(sum(share for _, share in one) - 1) < 1e-5 for one in found)


def test_a_fact_is_likelier_than_others(model):
    prompt = "Question: What is the capital of France?\nAnswer:"
    found = score.score(model, prompt, [" Madrid", " Paris", " Berlin"])
    assert max(found, key=lambda one: one.logprob).text == " Paris"
