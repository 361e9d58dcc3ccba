"""The README's Python runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_readme_has_an_example_in_under_twenty_lines():
    assert BLOCKS and all(len(block.splitlines()) < 20 for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs(block):
    scope = {}
    exec(block, scope)
    if "images" in scope:
        assert scope["images"].shape == (8, 32, 32, 3)
        assert scope["state"].step == 2
    elif "probabilities" in scope:
        np.testing.assert_allclose(scope["probabilities"].sum(-1), 1, atol=1e-5)
    else:
        assert scope["clean"].std() < 0.5 * scope["noisy"].std()
