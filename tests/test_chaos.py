"""The short form of `make chaos`: each scenario once, and every task is accounted for."""

import os
import random

import pytest

import servers
from chaos import table
from chaos.__main__ import chosen_groups, play_group

GROUPS = chosen_groups(os.environ.get("SCENARIO", "").split())


@pytest.mark.parametrize("group", GROUPS)
def test_nothing_is_lost_or_doubled_whatever_breaks(group):
    seed = os.environ.get("SEED") or random.SystemRandom().randrange(1_000_000)
    try:
        accounts = play_group(GROUPS[group], seed)
    except servers.Missing as e:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(e))
    lines = [f"SEED={seed}", *table.lines_of(accounts)]
    for account in accounts:
        lines += table.details_of(account)
    assert all(account.is_good for account in accounts), "\n".join(lines)
    if os.environ.get("CI"):
        assert not [account.skipped for account in accounts if account.skipped]
