"""Schedules: when a repeating task runs next."""

import random
import sys
import time
import zoneinfo
from datetime import datetime, timedelta, timezone

import pytest

import taskmanager
from taskmanager import check_repeat, check_timezone, next_time

MINUTE = timedelta(minutes=1)


def at(text):
    return datetime.fromisoformat(text)


def times(repeat, zone, after, count):
    """The next times of a cron expression, as texts."""
    found = []
    moment = at(after)
    while len(found) < count:
        moment = next_time(repeat, zone, moment, moment)
        found.append(moment.isoformat(" ", "minutes"))
    return found


# What `repeat` may be


@pytest.mark.parametrize("value", [1, 1.5, 3600, 315360000], ids=repr)
def test_an_interval_is_a_number_of_seconds(value):
    assert check_repeat(value) == value


@pytest.mark.parametrize("value, checked", [
    ("30 3 * * mon-fri", "30 3 * * mon-fri"),
    ("  0   0\t1 1 *  ", "0 0 1 1 *"),
    ("0 0 1 JAN,Feb-apr Sun", "0 0 1 JAN,Feb-apr Sun"),
    ("*/15,7 00-23/2 1,15 * 0-7", "*/15,7 00-23/2 1,15 * 0-7"),
    ("59 23 29 2 7", "59 23 29 2 7"),
    ("0 0 30 2 1", "0 0 30 2 1"),
    ("@daily", "@daily"),
    ("@Annually", "@Annually"),
    (",".join(map(str, range(60))) + " 0 1 1 *", ",".join(map(str, range(60))) + " 0 1 1 *"),
], ids=["names", "white space", "upper case", "lists, ranges and steps", "highest", "Mondays in February",
        "alias", "alias in upper case", "all minutes"])
def test_a_cron_expression_is_taken(value, checked):
    assert check_repeat(value) == checked


@pytest.mark.parametrize("value, expected", [
    (None, "a cron expression such as .*, or a number of seconds from 1 to 315360000"),
    (True, "a number of seconds from 1 to 315360000"),
    (0, "a number of seconds from 1"),
    (0.999, "a number of seconds from 1"),
    (315360001, "a number of seconds from 1 to 315360000"),
    (10**400, "a number of seconds from 1"),
    (float("nan"), "a number of seconds from 1"),
    (float("inf"), "a number of seconds from 1"),
    ([], "a number of seconds from 1"),
    ("", "of five fields"),
    ("3600", "of five fields"),
    ("* * * *", "of five fields"),
    ("0 * * * * *", "of five fields"),
    ("@reboot", "@hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually"),
    ("@daily *", "of five fields"),
    ("x" * 256, "up to 255 characters"),
    (",".join(["1"] * 10_000) + " * * * *", "up to 255 characters"),
    ("9" * 250 + " * * *", "of five fields"),
    ("1\N{NO-BREAK SPACE}* * * *", "of five fields"),
    ("\N{ARABIC-INDIC DIGIT THREE} * * * *", "of five fields"),
    ("\N{FULLWIDTH DIGIT THREE} * * * *", "of five fields"),
    ("@wee\N{KELVIN SIGN}ly", "of five fields"),
    ("60 * * * *", "'60' as minute: expected 0 to 59;"),
    ("-1 * * * *", "'-1' as minute"),
    ("1- * * * *", "'1-' as minute"),
    ("+1 * * * *", r"'\+1' as minute"),
    ("1_0 * * * *", "'1_0' as minute"),
    ("001 * * * *", "'001' as minute"),
    ("99999999999999999999 * * * *", "as minute"),
    ("1, * * * *", "'' as minute"),
    ("5-1 * * * *", "'5-1' as minute: .* the lower one first"),
    ("1-2-3 * * * *", "'1-2-3' as minute"),
    ("*-5 * * * *", "as minute"),
    ("*/0 * * * *", "as minute: .* up to 59"),
    ("*/60 * * * *", "as minute: .* up to 59"),
    ("*/-1 * * * *", "as minute"),
    ("*/99999999999 * * * *", "as minute"),
    ("*/2/3 * * * *", "as minute"),
    ("*/ * * * *", "as minute"),
    ("jan * * * *", "'jan' as minute"),
    ("0 24 * * *", "'24' as hour: expected 0 to 23;"),
    ("0 */24 * * *", "as hour"),
    ("0 0 0 * *", "'0' as day of the month: expected 1 to 31;"),
    ("0 0 32 * *", "'32' as day of the month"),
    ("0 0 L * *", "'l' as day of the month"),
    ("0 0 ? * *", "as day of the month"),
    ("0 0 1 0 *", "'0' as month: expected 1 to 12 or jan, feb"),
    ("0 0 1 13 *", "'13' as month"),
    ("0 0 1 mon *", "'mon' as month"),
    ("0 0 1 january *", "'january' as month"),
    ("0 0 * * 8", "'8' as day of the week: expected 0 to 7 or sun, mon"),
    ("0 0 * * sat-sun", "'sat-sun' as day of the week: .* the lower one first"),
    ("0 0 * * mon#1", "'mon#1' as day of the week"),
    ("0 0 30 2 *", "a date that exists: no month '2' has a day '30'"),
    ("0 0 31 feb,4,6,9,11 *", "a date that exists"),
    ("0 0 30,31 2 */2", "a date that exists"),
], ids=lambda value: repr(value)[:30])
def test_what_is_no_schedule_is_refused(value, expected):
    with pytest.raises(taskmanager.Invalid, match=expected) as error:
        check_repeat(value)
    assert len(str(error.value)) < 600


# What `timezone` may be


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5"])
def test_a_time_zone_has_its_name_in_the_iana_database(name):
    assert check_timezone(name) == name


@pytest.mark.parametrize("name", [
    "", "Mars/Olympus", "europe/berlin", "Europe", "CEST", "+02:00", "../x", "../../etc/passwd",
    "/etc/passwd", "/etc/localtime", "Europe/../Europe/Berlin", "Europe/Berlin/", "posix/Europe/Berlin",
    "right/Europe/Berlin", "localtime", "tzdata.zi", "a\0b", "\ud800", "Europe/Berlin\n", "x" * 100_000,
    None, 1, ["UTC"], {},
], ids=lambda value: repr(value)[:30])
def test_another_time_zone_is_refused_and_no_file_is_looked_for(name, monkeypatch):
    monkeypatch.setattr(zoneinfo, "ZoneInfo", None)
    with pytest.raises(taskmanager.Invalid, match="expected the name of a time zone such as Europe/Berlin"):
        check_timezone(name)


def test_a_machine_without_time_zones_has_utc(monkeypatch):
    monkeypatch.setitem(sys.modules, "tzdata", None)
    kept = zoneinfo.TZPATH
    zoneinfo.reset_tzpath(to=())
    zoneinfo.ZoneInfo.clear_cache()
    taskmanager.time_zones.cache_clear()
    try:
        assert check_timezone("UTC") == "UTC"
        assert next_time("0 12 * * *", "UTC", at("2026-01-01"), at("2026-01-01")) == at("2026-01-01 12:00")
        with pytest.raises(taskmanager.Invalid, match="expected UTC: this machine has no data .* tzdata"):
            check_timezone("Europe/Berlin")
        with pytest.raises(taskmanager.Invalid, match="tzdata"):
            next_time("0 12 * * *", "Europe/Berlin", at("2026-01-01"), at("2026-01-01"))
    finally:
        zoneinfo.reset_tzpath(to=kept)
        zoneinfo.ZoneInfo.clear_cache()
        taskmanager.time_zones.cache_clear()


# Intervals


@pytest.mark.parametrize("base, after, expected", [
    ("2026-01-01 12:00:00", "2026-01-01 12:00:00", "2026-01-01 13:00:00"),
    ("2026-01-01 12:00:00", "2026-01-01 12:00:09", "2026-01-01 13:00:00"),
    ("2026-01-01 12:00:00", "2026-01-01 12:59:59.999999", "2026-01-01 13:00:00"),
    ("2026-01-01 12:00:00", "2026-01-01 13:00:00", "2026-01-01 14:00:00"),
    ("2026-01-01 12:00:00", "2026-01-01 14:30:00", "2026-01-01 15:00:00"),
    ("2021-01-01 12:00:00", "2026-01-01 09:59:00", "2026-01-01 10:00:00"),
    ("2026-01-01 12:34:56.789", "2026-03-01 00:00:00", "2026-03-01 00:34:56.789"),
    ("2026-01-01 12:00:00", "2026-01-01 10:30:00", "2026-01-01 11:00:00"),
], ids=["at once", "soon", "just before the next", "as long as the gap", "longer than the gap",
        "missed for years", "any second", "any time of the rhythm is a base"])
def test_an_interval_keeps_its_rhythm(base, after, expected):
    assert next_time(3600, None, at(base), at(after)) == at(expected)


def test_a_short_interval_does_not_drift():
    base = moment = at("2026-01-01")
    for n in range(1, 1000):
        moment = next_time(1.1, None, base, moment + timedelta(milliseconds=5))
        assert moment == base + n * timedelta(seconds=1.1)


# Cron expressions


@pytest.mark.parametrize("repeat, expected", [
    ("* * * * *", ["2026-01-01 00:01", "2026-01-01 00:02"]),
    ("@hourly", ["2026-01-01 01:00", "2026-01-01 02:00"]),
    ("@daily", ["2026-01-02 00:00", "2026-01-03 00:00"]),
    ("@midnight", ["2026-01-02 00:00", "2026-01-03 00:00"]),
    ("@weekly", ["2026-01-04 00:00", "2026-01-11 00:00"]),
    ("@monthly", ["2026-02-01 00:00", "2026-03-01 00:00"]),
    ("@yearly", ["2027-01-01 00:00", "2028-01-01 00:00"]),
    ("@annually", ["2027-01-01 00:00", "2028-01-01 00:00"]),
    ("5-15/5 3 * * *", ["2026-01-01 03:05", "2026-01-01 03:10", "2026-01-01 03:15", "2026-01-02 03:05"]),
    ("40/15 3 * * *", ["2026-01-01 03:40", "2026-01-01 03:55", "2026-01-02 03:40"]),
    ("0 20,7,20 * * *", ["2026-01-01 07:00", "2026-01-01 20:00", "2026-01-02 07:00"]),
    ("0 0 * * 0", ["2026-01-04 00:00", "2026-01-11 00:00"]),
    ("0 0 * * 7", ["2026-01-04 00:00", "2026-01-11 00:00"]),
    ("0 0 * * fri-7", ["2026-01-02 00:00", "2026-01-03 00:00", "2026-01-04 00:00", "2026-01-09 00:00"]),
    ("0 0 13 * fri", ["2026-01-02 00:00", "2026-01-09 00:00", "2026-01-13 00:00", "2026-01-16 00:00"]),
    ("0 0 */31 * sun", ["2026-02-01 00:00", "2026-03-01 00:00"]),
    ("0 0 */10 * sun", ["2026-01-11 00:00", "2026-02-01 00:00"]),
    ("0 0 13 * */5", ["2026-02-13 00:00", "2026-03-13 00:00", "2026-09-13 00:00"]),
    ("0 0 31 * *", ["2026-01-31 00:00", "2026-03-31 00:00", "2026-05-31 00:00"]),
    ("0 0 29 2 *", ["2028-02-29 00:00", "2032-02-29 00:00"]),
    ("0 0 30 feb mon", ["2026-02-02 00:00", "2026-02-09 00:00"]),
    ("59 23 31 dec *", ["2026-12-31 23:59", "2027-12-31 23:59"]),
], ids=lambda value: value if isinstance(value, str) else None)
def test_a_cron_expression_matches_as_in_cron(repeat, expected):
    assert times(repeat, None, "2026-01-01", len(expected)) == expected


@pytest.mark.parametrize("second", ["00", "00.000001", "59.999999"])
def test_the_next_time_is_later(second):
    after = at(f"2026-01-01 00:00:{second}")
    assert next_time("* * * * *", None, after, after) == at("2026-01-01 00:01")


@pytest.mark.parametrize("repeat, zone, after, expected", [
    # The clock skips 02:00 to 03:00, at 01:00 in UTC.
    ("30 2 * * *", "Europe/Berlin", "2026-03-28 00:00", "03-28 01:30, 03-29 01:00, 03-30 00:30"),
    ("0,20,40 2 * * *", "Europe/Berlin", "2026-03-28 01:30", "03-28 01:40, 03-29 01:00, 03-30 00:00"),
    ("30 2,3 * * *", "Europe/Berlin", "2026-03-28 12:00", "03-29 01:00, 03-29 01:30, 03-30 00:30"),
    ("*/30 * * * *", "Europe/Berlin", "2026-03-29 00:00", "03-29 00:30, 03-29 01:00, 03-29 01:30"),
    ("30 * * * *", "Europe/Berlin", "2026-03-29 00:00", "03-29 00:30, 03-29 01:00, 03-29 01:30"),
    # It shows 02:00 to 03:00 twice, from 00:00 and from 01:00 in UTC.
    ("30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", "10-25 00:30, 10-26 01:30"),
    ("*/30 2-3 * * *", "Europe/Berlin", "2026-10-24 12:00", "10-25 00:00, 10-25 00:30, 10-25 02:00"),
    ("30 2 * * *", "Europe/Berlin", "2026-10-25 01:10", "10-26 01:30"),
    ("@hourly", "Europe/Berlin", "2026-10-24 23:30", "10-25 00:00, 10-25 02:00, 10-25 03:00"),
    ("30 2 * * *", "America/New_York", "2026-03-07 12:00", "03-08 07:00, 03-09 06:30"),
    ("30 1 * * *", "America/New_York", "2026-10-31 12:00", "11-01 05:30, 11-02 06:30"),
    # Half an hour: 02:00 to 02:30 is skipped, 01:30 to 02:00 comes twice.
    ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03 00:00", "10-03 15:30, 10-04 15:15"),
    ("45 2 * * *", "Australia/Lord_Howe", "2026-10-03 00:00", "10-03 15:45, 10-04 15:45"),
    ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04 00:00", "04-04 14:45, 04-05 15:15"),
    # Ramadan: 03:00 to 04:00 comes twice when it begins, 02:00 to 03:00 is skipped when it has ended.
    ("30 2 * * *", "Africa/Casablanca", "2025-02-22 12:00", "02-23 01:30, 02-24 02:30"),
    ("30 2 * * *", "Africa/Casablanca", "2025-04-05 12:00", "04-06 02:00, 04-07 01:30"),
    # The day begins at 01:00, since the clock skips the hour before.
    ("@daily", "America/Santiago", "2025-09-06 12:00", "09-07 04:00, 09-08 03:00"),
    ("0 0 7 9 *", "America/Santiago", "2025-09-06 12:00", "09-07 04:00, 09-07 03:00"),
    ("@daily", "Asia/Beirut", "2025-03-29 12:00", "03-29 22:00, 03-30 21:00"),
    ("30 23 * * *", "America/Santiago", "2025-04-05 12:00", "04-06 02:30, 04-07 03:30"),
    # There was no 30 December 2011 in Samoa.
    ("0 12 30 12 *", "Pacific/Apia", "2011-12-01 00:00", "12-30 10:00, 12-29 22:00"),
    ("0 12 * * *", "Pacific/Apia", "2011-12-29 00:00", "12-29 22:00, 12-30 10:00, 12-30 22:00"),
    # No change.
    ("30 5 * * *", "Asia/Kolkata", "2026-01-01 00:00", "01-02 00:00, 01-03 00:00"),
    ("0 0 1 1 *", "Pacific/Kiritimati", "2026-01-01 00:00", "12-31 10:00"),
    ("0 0 1 1 *", "Pacific/Pago_Pago", "2026-01-01 00:00", "01-01 11:00"),
], ids=str)
def test_what_the_clock_skips_is_due_after_it_and_what_it_shows_twice_once(repeat, zone, after, expected):
    found = times(repeat, zone, after, expected.count(",") + 1)
    assert ", ".join(moment[len("2026-"):] for moment in found) == expected


# At the ends, and in a short time


@pytest.mark.parametrize("repeat", [1, 315360000, "* * * * *", "0 0 1 1 *", "0 0 29 2 *"], ids=repr)
@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/New_York"])
def test_time_has_an_end(repeat, zone):
    assert next_time(repeat, zone, datetime.max, datetime.max) is None
    for day in datetime.max - timedelta(days=1), datetime.min, datetime.min + timedelta(days=1):
        moment = next_time(repeat, zone, day, day)
        assert moment is None or moment > day


MINUTES = ",".join(map(str, range(60)))


@pytest.mark.parametrize("repeat, after, expected", [
    ("0 0 29 2 */7", "2088-03-01", "2128-02-29"),
    ("0 0 29 2 */7", "2184-03-01", "2224-02-29"),
    (f"{MINUTES} */1,*/1,*/1,*/1,* */1,*/1,*/1,*/1,*/1,* * *", "2026-12-31 23:58", "2026-12-31 23:59"),
    ("59 23 31 12 *", "2026-12-31 23:59", "2027-12-31 23:59"),
], ids=["29 February on a Sunday", "with a year without it between", "as long as can be", "in a year"])
def test_what_matches_rarely_is_found_fast(repeat, after, expected):
    next_time("0 0 * * *", "Atlantic/Reykjavik", at(after), at(after))      # which reads the zone's file
    begin = time.process_time()
    assert next_time(check_repeat(repeat), "Atlantic/Reykjavik", at(after), at(after)) == at(expected)
    assert time.process_time() - begin < 0.02


# Against a model that looks at every minute

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca",
         "America/Santiago", "Asia/Beirut", "Asia/Kathmandu", "Pacific/Chatham"]
STARTS = ["2025-02-21", "2025-03-07", "2025-03-28", "2025-04-04", "2025-09-05", "2025-09-26", "2025-10-03",
          "2025-10-24", "2025-10-31", "2025-12-30"]
MODEL_MINUTES = 4 * 1440


def random_field(draw, low, high):
    kind = draw.random()
    if kind < 0.35:
        return "*", set(range(low, high + 1))
    if kind < 0.5:
        step = draw.randint(1, high)
        return f"*/{step}", set(range(low, high + 1, step))
    first, last = sorted((draw.randint(low, high), draw.randint(low, high)))
    if kind < 0.65:
        step = draw.randint(1, 5)
        return f"{first}-{last}/{step}", set(range(first, last + 1, step))
    return f"{last},{first}", {first, last}


def model(zone, start, is_match):
    """The minutes in which the clock of a zone first shows, or has skipped, a local time that matches."""
    clock = timezone.utc if zone == "UTC" else zoneinfo.ZoneInfo(zone)

    def show(minute):
        return (start + minute * MINUTE).replace(tzinfo=timezone.utc).astimezone(clock).replace(tzinfo=None)

    due = []
    shown = max(show(minute) for minute in range(-1440, 1))      # the latest that it has shown
    for minute in range(1, MODEL_MINUTES):
        now = show(minute)
        passed = [shown + n * MINUTE for n in range(1, (now - shown) // MINUTE + 1)]
        if any(is_match(local) for local in passed):
            due.append(start + minute * MINUTE)
        shown = max(shown, now)
    return due


@pytest.mark.parametrize("seed", range(40))
def test_the_next_times_are_those_of_a_model_that_looks_at_every_minute(seed):
    draw = random.Random(seed)
    limits = (0, 59), (0, 23), (1, 31), (1, 12), (0, 7)
    texts, sets = zip(*(random_field(draw, low, high) for low, high in limits), strict=True)
    if draw.random() < 0.6:
        texts, sets = (*texts[:3], "*", texts[4]), (*sets[:3], set(range(1, 13)), sets[4])
    zone, start = draw.choice(ZONES), at(draw.choice(STARTS)) + draw.randrange(2880) * MINUTE

    def is_match(local):
        days = local.day in sets[2], bool({local.isoweekday(), local.isoweekday() % 7} & sets[4])
        day = all(days) if texts[2].startswith("*") or texts[4].startswith("*") else any(days)
        return local.minute in sets[0] and local.hour in sets[1] and local.month in sets[3] and day

    found, after = [], start
    while (after := next_time(" ".join(texts), zone, after, after)) < start + MODEL_MINUTES * MINUTE:
        found.append(after)
    assert found == model(zone, start, is_match), (texts, zone, start)
