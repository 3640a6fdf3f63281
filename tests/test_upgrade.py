"""A short form of `make upgrade`: the new version starts on an old table, in which an old program writes."""

import pytest

import taskmanager
from chaos import upgrade

# On PostgreSQL what the document has, and the first of ours; on SQLite the first and the last older one.
TABLES = ["document", "postgres-1", "postgres-5", "sqlite-1", "sqlite-7"]


@pytest.mark.parametrize("name", TABLES)
def test_an_upgrade_under_load_keeps_all_rows_and_runs_them(start, empty_database, sqlite_database, name):
    url = sqlite_database if name.startswith("sqlite") else empty_database()
    assert "up after" in upgrade.upgrade(start, url, upgrade.SCHEMAS[name], 400)


# Those between them: no programs, only what the start does.
@pytest.mark.parametrize("name", [name for name in upgrade.SCHEMAS if name not in TABLES])
def test_each_older_table_is_upgraded_with_all_its_rows(empty_database, sqlite_database, name):
    url = sqlite_database if name.startswith("sqlite") else empty_database()
    connection = upgrade.connect(url)
    upgrade.make_table(connection, upgrade.SCHEMAS[name], 40)
    upgrade.query(connection, "delete from tasks where id = 40")
    before = upgrade.query(connection, upgrade.ROWS_OF)
    store = taskmanager.open_store(url)
    assert upgrade.query(connection, upgrade.ROWS_OF) == before
    assert store.create() == [41]       # no id is given again
    store.reclaim(3)
    assert len(store.claim(100, 30)) == 20      # those that were New, In Progress, and the new one
    store.close()
    connection.close()
