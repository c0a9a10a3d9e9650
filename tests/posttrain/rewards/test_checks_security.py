"""Tests that a problem defines and nothing calls: they are run, and no answer passes because they are not."""

from __future__ import annotations

import pytest

from fathom.posttrain.rewards.checks import checks_of
from fathom.posttrain.sandbox import run_program

RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
SKIPS = "import unittest\n\ndef add(a, b):\n    raise unittest.SkipTest('nothing to see')\n"
CASE = """import unittest

class TestAdd(unittest.TestCase):
    def setUp(self):
        self.one = 1

    def test_adds(self):
        self.assertEqual(add(self.one, 2), 3)

    @unittest.skip("later")
    def test_later(self):
        self.fail()

    def test_raises(self):
        with self.assertRaises(TypeError):
            add(1, "a")
"""
STYLES = {
    "statements": "assert add(1, 2) == 3\n",
    "a function": "def test_add():\n    assert add(1, 2) == 3\n",
    "two functions": "def test_zero():\n    assert add(0, 0) == 0\n\ndef test_add():\n    assert add(1, 2) == 3\n",
    "a default": "def test_add(a=1):\n    assert add(a, 2) == 3\n",
    "async": "async def test_add():\n    assert add(1, 2) == 3\n",
    "called": "def test_add():\n    assert add(1, 2) == 3\n\ntest_add()\n",
    "called with arguments": "def test_add(a, b, c):\n    assert add(a, b) == c\n\ntest_add(1, 2, 3)\n",
    "main": "if __name__ == '__main__':\n    assert add(1, 2) == 3\n",
    "main calls": 'def test_add():\n    assert add(1, 2) == 3\n\nif "__main__" == __name__:\n    test_add()\n',
    "unittest": CASE,
    "unittest with main": f'{CASE}\nif __name__ == "__main__":\n    unittest.main()\n',
    "from unittest": "from unittest import TestCase\n\nclass T(TestCase):\n    def test_a(self):\n"
    "        assert add(1, 2) == 3\n",
    "unittest run by itself": f"{CASE}\nassert unittest.TextTestRunner().run("
    "unittest.defaultTestLoader.loadTestsFromTestCase(TestAdd)).wasSuccessful()\n",
}


@pytest.mark.parametrize("style", STYLES)
def test_security_what_nothing_calls_is_run(style: str, sandbox_works: None) -> None:
    checks = checks_of({"tests": STYLES[style]})
    assert run_program(RIGHT, checks).passed
    assert not run_program(WRONG, checks).passed


@pytest.mark.parametrize("style", [style for style in STYLES if "by itself" not in style])
def test_security_a_program_skips_no_test(style: str, sandbox_works: None) -> None:
    assert not run_program(SKIPS, checks_of({"tests": STYLES[style]})).passed


def test_a_test_that_takes_arguments_and_one_that_is_called_are_left_alone() -> None:
    for tests in (
        "def test_a(x):\n    assert f(x)\n",
        "def test_a():\n    assert f()\n\nfor t in [test_a]:\n    t()\n",
        "def helper():\n    pass\n",
        "def test_a(\n",
    ):
        assert checks_of({"tests": tests}) == tests
