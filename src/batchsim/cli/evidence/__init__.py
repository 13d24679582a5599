"""Commands that hold predictions against what was measured."""
