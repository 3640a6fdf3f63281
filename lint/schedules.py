"""schedules.py [SEED]: compare the next times of 10,000 random cron expressions with those of cronsim.

cronsim follows Debian's cron. Each expression is tried in a random time zone, from a random time near a
change of its clock. Ends with 0 when there are no differences but the intended ones: what the service refuses
(`why_refused`), how it reads a range (`as_cronsim`), and what a star means when a clock is changed
(`cronsim_times`).
"""

import collections
import random
import re
import sys
import zoneinfo
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cronsim import CronSim, CronSimError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import taskmanager

EXPRESSIONS = 10_000
TIMES = 25      # that are compared of each expression
MINUTE = timedelta(minutes=1)
Counts = collections.Counter[str]
UTC = timezone.utc
LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
NAMES = {3: "jan feb mar apr may jun jul aug sep oct nov dec".split(),
         4: "sun mon tue wed thu fri sat".split()}
NO_CHANGE = ["UTC", "Asia/Kolkata", "Asia/Kathmandu", "America/Phoenix", "Pacific/Kiritimati"]


def offset(zone: zoneinfo.ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def changes(zone: zoneinfo.ZoneInfo) -> list[datetime]:
    """Return the minutes in which the clock of a zone is changed, from 2010 to 2037."""
    found = []
    for week in range(28 * 52):
        low = datetime(2010, 1, 1, tzinfo=UTC) + timedelta(weeks=week)
        high = low + timedelta(weeks=1)
        before = offset(zone, low)
        if offset(zone, high) == before:
            continue
        while high - low > MINUTE:
            middle = low + (high - low) // MINUTE // 2 * MINUTE
            low, high = (middle, high) if offset(zone, middle) == before else (low, middle)
        found.append(high)
    return found


def number(n: int, text: str) -> int:
    """Return the number that a text means in a field, by the field's index."""
    text = text.lower()
    return NAMES[n].index(text) + LIMITS[n][0] if text in NAMES.get(n, ()) else int(text)


def random_number(draw: random.Random, n: int, low: int, high: int) -> str:
    value = draw.randint(low, high)
    if n in NAMES and draw.random() < 0.3:
        return draw.choice((str, str.upper, str.title))(draw.choice(NAMES[n]))
    return f"{value:02}" if draw.random() < 0.1 else f"{value}"


def random_item(draw: random.Random, n: int) -> str:
    low, high = LIMITS[n]
    if draw.random() < 0.02:        # not valid, or nearly so
        return draw.choice((
            "", "*/0", f"{high + 1}", f"*/{high + 1}", "-1", "5-", "x", "1-2-3", "*-5", "1/2/3", "L", "1#2",
            "8/8/", "/2", "1.5", "\N{ARABIC-INDIC DIGIT THREE}", "001", "*5", "sun-sat", "dec-jan", "mon/2"))
    first = random_number(draw, n, low, high)
    kind = draw.random()
    if kind < 0.25:
        return f"*/{draw.randint(1, high)}"
    if kind < 0.5:
        last = random_number(draw, n, low, high)
        if number(n, first) > number(n, last) and draw.random() < 0.95:
            first, last = last, first
        item = f"{first}-{last}"
    else:
        return first + (f"/{draw.randint(1, high)}" if draw.random() < 0.1 else "")
    return item + (f"/{draw.randint(1, 7)}" if draw.random() < 0.5 else "")


def random_cron(draw: random.Random) -> str:
    if draw.random() < 0.01:
        return draw.choice((
            "", "* * * *", "@reboot", "* * * * * x", "0 0 30 2 *", "0 0 31 2,4 */2", "0 0 30 2 1"))
    fields = []
    for n, star in enumerate((0.3, 0.4, 0.5, 0.6, 0.5)):
        items = [random_item(draw, n) for _ in range(draw.choice((1, 1, 1, 2, 3)))]
        fields.append("*" if draw.random() < star else ",".join(items))
    return " ".join(fields)


def as_cronsim(cron: str) -> str:
    """Return what means for cronsim what `cron` means for the service: the range 5-5/3 is 5 alone, as in
    Debian's cron. For cronsim it has no end, like 5/3."""
    def rewrite(n, item):
        match = re.fullmatch("([0-9a-z]+)-([0-9a-z]+)/[0-9]+", item, re.IGNORECASE)
        return match[1] if match and number(n, match[1]) == number(n, match[2]) else item

    fields = enumerate(cron.split())
    return " ".join(",".join(rewrite(n, item) for item in field.split(",")) for n, field in fields)


def why_refused(cron: str) -> str | None:
    """Return why the service refuses an expression that cronsim takes, if by intention."""
    for n, field in enumerate(cron.lower().split()):
        for item in field.split(","):
            if re.search("[l#]", item) and n in (2, 4) and item not in NAMES[3]:
                return "L, LW and # are not of cron"
            if (step := re.search("/([0-9]+)$", item)) and int(step[1]) > LIMITS[n][1]:
                return "a step that leaves the field is no step"
            if re.search("(?<![0-9])[0-9]{3,}", item):
                return "a number has two digits"
    return None


def cronsim_times(cron: str, zone: zoneinfo.ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
    """Return the times, in UTC, that cronsim finds after `start`, up to `end`. It may give one again, or
    begin with times that have passed, in an hour that comes twice."""
    times = CronSim(cron, start.astimezone(zone))
    # Where the minute or the hour begins with a star, Debian's cron counts the minutes that pass: what the
    # clock shows twice runs twice, and what it skips does not run. The service treats all expressions alike,
    # so cronsim is told to treat these like those without a star. (As it is, it also loses times where
    # a clock is changed by half an hour, and never ends where one was changed at 00:01.)
    if times.fixup_tz is None:
        times.fixup_tz, times.dt = zone, times.dt.replace(tzinfo=None)
    found: list[datetime] = []
    for local in times:
        moment = local.astimezone(UTC)
        if moment > end:
            break
        if moment > start and moment not in found[-1:]:
            found.append(moment)
    return found


def why_not(take: Callable[[str], object], cron: str) -> str | None:
    """Return the error with which a parser refuses an expression."""
    try:
        take(cron)
    except (taskmanager.Invalid, CronSimError) as e:
        return f"{e}"
    return None


def compare(cron: str, zone: zoneinfo.ZoneInfo, start: datetime, counts: Counts) -> str | None:
    """Return what differs otherwise than by intention."""
    ours = why_not(taskmanager.check_repeat, cron)
    theirs = why_not(lambda text: CronSim(text, start), cron)
    if ours or theirs:
        if ours and theirs:
            counts["refused by both"] += 1
        elif ours and (reason := why_refused(cron)):
            counts[reason] += 1
        else:
            return f"the service: {ours or 'takes it'}; cronsim: {theirs or 'takes it'}"
        return None

    found: list[datetime] = []
    after = start.replace(tzinfo=None)
    for _ in range(TIMES):
        moment = taskmanager.next_time(cron, zone.key, after, after)
        if moment is None:
            break
        found.append(moment.replace(tzinfo=UTC))
        after = moment
    expected = cronsim_times(as_cronsim(cron), zone, start, found[-1])
    counts["times"] += len(found)

    if found != expected:
        return f"the service alone: {show(found, expected)}; cronsim alone: {show(expected, found)}"
    return None


def show(some: list[datetime], others: list[datetime]) -> str:
    return ", ".join(f"{moment:%Y-%m-%d %H:%M}" for moment in some if moment not in others)[:200]


def main(seed: int) -> int:
    draw = random.Random(seed)
    zones = {name: changes(zoneinfo.ZoneInfo(name)) for name in sorted(zoneinfo.available_timezones())}
    zones = {name: moments for name, moments in zones.items() if moments or name in NO_CHANGE}
    counts = Counts()
    failures = 0
    for _ in range(EXPRESSIONS):
        name = draw.choice(list(zones))
        start = draw.choice(zones[name] or [datetime(2026, 1, 1, tzinfo=UTC)])
        start += timedelta(seconds=draw.randrange(-draw.choice((1200, 7200, 86400, 3 * 86400)), 5400))
        cron = random_cron(draw)
        difference = compare(cron, zoneinfo.ZoneInfo(name), start, counts)
        if difference:
            failures += 1
            print(f"{cron!r} in {name} after {start:%Y-%m-%d %H:%M:%S}: {difference}")
    print(f"schedules: {EXPRESSIONS} expressions in {len(zones)} zones, seed {seed}: {failures} differ")
    for what, count in counts.most_common():
        print(f"{count:10} {what}")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else random.randrange(10**6)))
