"""What sync writes beside a fingerprint of code."""

from stages.sync import pattern_order


def test_the_order_of_patterns_is_part_of_the_fingerprint():
    """DVC compares mappings without their order, and of several patterns the first that fits counts."""
    patterns = {"to_q": 6, "attn1.to_q": 2}
    orders = [pattern_order({"rank_pattern": each}) for each in (patterns, dict(reversed(patterns.items())))]
    assert orders == ["\nrank_pattern: to_q, attn1.to_q", "\nrank_pattern: attn1.to_q, to_q"]


def test_without_several_patterns_nothing_is_added():
    assert pattern_order({"rank_pattern": {"to_q": 6}, "alpha_pattern": {}, "names": {"theta0": "a", "theta1": "b"}}) == ""
    assert pattern_order({}) == pattern_order(None) == ""
