"""A short form of `make soak`: some tasks with nothing broken, and what the processes use meanwhile."""

from chaos import soak


def test_a_short_soak_finds_nothing(start, empty_database, rabbitmq, capsys):
    # How long a pause may be is no matter of a test.
    assert soak.soak(start, empty_database(), rabbitmq, 1000, longest_pause=60) == []
    assert "none lost, none twice" in capsys.readouterr().out


def test_a_short_soak_on_sqlite_finds_nothing(start, sqlite_database, capsys):
    assert soak.soak(start, sqlite_database, None, 500, longest_pause=60) == []
    assert "none lost, none twice" in capsys.readouterr().out


def test_what_grows_beyond_its_limit_is_told():
    def sample(done, seconds, memory, table):
        return done, seconds, {("api", "MB of memory"): memory, ("database", "MB of the table"): table}

    begin, middle = sample(10, 10, 60, 5), sample(50, 500, 70, 100)
    assert soak.judge([begin, middle, sample(95, 950, 75, 130)], 60) == []
    assert soak.judge([begin, middle, sample(95, 950, 150, 130)], 60) == [
        "api: MB of memory have grown to 150.0, expected at most 99.0"]
    assert soak.judge([begin, middle, sample(95, 950, 75, 200)], 60) == [
        "database: MB of the table have grown to 200.0, expected at most 146.0"]
