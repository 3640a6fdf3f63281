"""What the project is built from and runs in: the runner of the tests, packages, vendored files, containers."""

import subprocess
import sys

from conftest import ROOT

# The runner of the tests


def test_the_runner_shares_out_the_tests_and_fails_when_one_of_them_does(tmp_path):
    # A failure in one process of several must not get lost in the sum of the others.
    (tmp_path / "test_some.py").write_text("""
import pytest

@pytest.mark.parametrize("number", range(20))
def test_number(number):
    assert number != 7

@pytest.mark.skip("why not")
def test_left_out():
    pass
""")
    done = subprocess.run([sys.executable, ROOT / "tests/run", f"--rootdir={tmp_path}", tmp_path / "test_some.py"],
                          capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.count("assert 7 != 7") == 1 and done.stdout.count("why not") == 1
    assert done.stdout.splitlines()[-1] == "19 passed, 1 failed, 1 skipped"
