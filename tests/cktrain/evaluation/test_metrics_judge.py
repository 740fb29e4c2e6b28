"""ROUGE-L beside the package's own words in ASCII, and in other scripts."""

from __future__ import annotations

import random

import pytest

from cktrain.evaluation.metrics import check_metrics, exact_match, rouge_l

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")

pytestmark = pytest.mark.judge


def test_ascii_is_what_the_package_says():
    rng = random.Random(3)
    words = ["the", "The", "cat", "sat-on", "a", "mat.", "it's", "42", "x_y", "(no)"]
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    for _ in range(50):
        answer, reference = (" ".join(rng.choices(words, k=rng.randrange(12))) for _ in range(2))
        assert rouge_l(answer, reference) == scorer.score(reference, answer)["rougeL"].fmeasure


def test_other_scripts_have_words_too():
    assert rouge_l("Die Größe zählt", "die größe zählt nicht") == pytest.approx(2 * 0.75 / 1.75)
    assert rouge_l("кот сидит", "кот спит") == 0.5 and rouge_l("", "x") == 0


def test_exact_match_and_unknown_metrics():
    assert (exact_match(" a b\n", "a b"), exact_match("a  b", "a b")) == (1, 0)
    check_metrics(["exact_match", "rouge_l"])
    with pytest.raises(ValueError, match="metric 'bleu': give some of exact_match, rouge_l"):
        check_metrics(["bleu"])
