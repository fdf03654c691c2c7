"""`qwenctl.core.schedule` against zoneinfo, minute by minute, where clocks are changed; calendar files."""

from __future__ import annotations

import time
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenctl.config.holidays import all_day_dates, read_calendar
from qwenctl.core.schedule import Cron, Schedule, moments
from qwenctl.errors import ConfigError

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
LORD_HOWE, SHANGHAI = ZoneInfo("Australia/Lord_Howe"), ZoneInfo("Asia/Shanghai")
ZONES = st.sampled_from([BERLIN, NEW_YORK, LORD_HOWE, SHANGHAI])
DAY = 86400.0

CHANGES = {
    BERLIN: ["2026-03-29T01:00", "2026-10-25T01:00"],
    NEW_YORK: ["2026-03-08T07:00", "2026-11-01T06:00"],
    LORD_HOWE: ["2026-04-04T15:00", "2026-10-03T15:30"],
    SHANGHAI: ["2026-03-29T01:00"],
}
"""When clocks are changed, in UTC (Shanghai: never)."""


def schedule(cron: str, zone: ZoneInfo = BERLIN, hours: float = 1.0, *exceptions: date) -> Schedule:
    return Schedule(
        "s", "prewarm", Cron(cron), zone, hours * 3600, exceptions=frozenset(exceptions)
    )


def unix(zone: ZoneInfo, *local: int, fold: int = 0) -> float:
    return datetime(*local, tzinfo=zone, fold=fold).timestamp()  # type: ignore[arg-type,misc]


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


local = datetime.fromisoformat
"""Local time, without a zone."""


def around(zone: ZoneInfo, number: int) -> float:
    changes = CHANGES[zone]
    return utc(changes[number % len(changes)])


def matching_minutes(cron: str, zone: ZoneInfo, since: float, until: float) -> list[float]:
    """What a clock that is looked at each minute would start: no arithmetic with zones at all."""
    minutes, hours, _, _, days = cron.split()

    def fits(field: str, value: int) -> bool:
        base, _, step = field.partition("/")
        if base == "*":
            return value % int(step or 1) == 0
        return str(value) in base.split(",")

    found, moment = [], since
    while moment < until:
        at = datetime.fromtimestamp(moment, zone)
        shown = (at.minute, at.hour, at.isoweekday() % 7)
        if all(map(fits, (minutes, hours, days), shown)):
            found.append(moment)
        moment += 60
    return found


numbers = st.lists(st.integers(0, 59), min_size=1, max_size=3, unique=True)
minute_field = st.one_of(
    st.just("*"), st.just("*/15"), numbers.map(lambda n: ",".join(map(str, sorted(n))))
)
night = st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True)
hour_field = st.one_of(
    st.just("*"), st.just("*/2"), night.map(lambda n: ",".join(map(str, sorted(n))))
)
day_field = st.sampled_from(["*", "*", "0", "0,6"])


@settings(max_examples=150, deadline=None)
@given(zone=ZONES, number=st.integers(0, 1), minute=minute_field, hour=hour_field, day=day_field)
@example(LORD_HOWE, 0, "0", "*/2", "*")  # cronsim's own zones lose 02:00 here
@example(BERLIN, 0, "30", "2", "*")
@example(BERLIN, 1, "30", "2", "*")
def test_openings_are_those_of_a_clock(
    zone: ZoneInfo, number: int, minute: str, hour: str, day: str
) -> None:
    """At intervals: exactly. At times of day: the same but for the hour that is lost or comes
    twice, and exactly one for each local time of each day."""
    change = around(zone, number)
    since, until = change - 12 * 3600, change + 12 * 3600
    cron = f"{minute} {hour} * * {day}"
    plan = schedule(cron, zone)
    found, seen = plan.openings(since, until), matching_minutes(cron, zone, since, until)
    # Debian's cron(8): "jobs scheduled at intervals" have a * in the hour or minute field.
    if minute.startswith("*") or hour.startswith("*"):
        assert found == seen
        return
    first_time = [t for t in seen if datetime.fromtimestamp(t, zone).fold == 0]
    assert [t for t in found if t in seen] == first_time
    # What a clock never shows opens when the clocks have been changed, all of it at once.
    assert [t for t in found if t not in seen] in ([], [change])


@settings(max_examples=100, deadline=None)
@given(
    zone=ZONES,
    minute=st.integers(0, 59),
    hour=st.integers(0, 23),
    year=st.integers(2000, 2036),
)
def test_a_time_of_day_opens_once_each_day_of_the_year(
    zone: ZoneInfo, minute: int, hour: int, year: int
) -> None:
    plan = schedule(f"{minute} {hour} * * *", zone)
    opens = plan.openings(unix(zone, year, 1, 1), unix(zone, year + 1, 1, 1))
    days = [datetime.fromtimestamp(t, zone).date() for t in opens]
    assert days == [
        date(year, 1, 1) + timedelta(days=n) for n in range((date(year + 1, 1, 1) - days[0]).days)
    ]


@settings(max_examples=150, deadline=None)
@given(
    zone=ZONES,
    number=st.integers(0, 1),
    minute=minute_field,
    hour=hour_field,
    day=day_field,
    offset=st.integers(-30 * 3600, 30 * 3600),
    duration=st.integers(1, 40 * 3600),
    lead=st.integers(0, 30 * 3600),
)
def test_the_window_is_the_last_that_has_started(
    zone: ZoneInfo,
    number: int,
    minute: str,
    hour: str,
    day: str,
    offset: int,
    duration: int,
    lead: int,
) -> None:
    now = around(zone, number) + offset
    plan = schedule(f"{minute} {hour} * * {day}", zone, duration / 3600)
    opens = plan.openings(now - 3 * DAY, now + 3 * DAY)
    started = [t for t in opens if t - lead <= now < t + duration]
    window = plan.window(now, float(lead))
    assert (window.opens if window else None) == (started[-1] if started else None)
    if window:
        assert (window.starts, window.ends) == (window.opens - lead, window.opens + duration)
    later = [t for t in opens if t - lead > now][:3]
    upcoming = plan.upcoming(now, 3, float(lead))
    assert [w.opens for w in upcoming][: len(later)] == later
    assert len(upcoming) == 3


class TestClockChanges:
    """What docs/schedules.md says."""

    def test_a_time_that_is_skipped_opens_at_the_end_of_the_gap(self) -> None:
        opens = schedule("30 2 * * *").openings(utc("2026-03-28T12:00"), utc("2026-03-30T12:00"))
        assert opens == [utc("2026-03-29T01:00"), utc("2026-03-30T00:30")]  # 03:00, 02:30 CEST

    def test_a_time_that_comes_twice_opens_the_first_time(self) -> None:
        opens = schedule("30 2 * * *").openings(utc("2026-10-24T12:00"), utc("2026-10-26T12:00"))
        assert opens == [utc("2026-10-25T00:30"), utc("2026-10-26T01:30")]

    def test_intervals_follow_the_clock(self) -> None:
        half_hours = schedule("*/30 * * * *")
        night = half_hours.openings(utc("2026-10-24T22:00"), utc("2026-10-25T04:00"))
        assert night == [night[0] + 1800 * n for n in range(12)]

    def test_half_an_hour_at_lord_howe(self) -> None:
        opens = schedule("15 2 * * *", LORD_HOWE).openings(
            unix(LORD_HOWE, 2026, 10, 4), unix(LORD_HOWE, 2026, 10, 5)
        )
        assert opens == [unix(LORD_HOWE, 2026, 10, 4, 2, 30)]

    def test_a_duration_is_elapsed_time(self) -> None:
        window = schedule("0 22 * * *", hours=8).window(utc("2026-03-29T00:00"), 0)
        assert window
        assert window.ends == utc("2026-03-29T05:00")  # 07:00 CEST, not 06:00

    @pytest.mark.parametrize(
        ("now", "opens"),
        [
            ("2026-10-25T00:29:59", None),
            ("2026-10-25T00:30:00", "2026-10-25T00:30"),
            ("2026-10-25T01:29:59", "2026-10-25T00:30"),
            ("2026-10-25T01:30:00", None),  # 02:30 on the clock for the second time
        ],
    )
    def test_in_the_hour_that_comes_twice(self, now: str, opens: str | None) -> None:
        window = schedule("30 2 * * *").window(utc(now), 0)
        assert (window.opens if window else None) == (utc(opens) if opens else None)

    def test_a_moment_of_each_kind(self) -> None:
        assert moments(local("2026-06-01T09:00"), BERLIN, repeat=False) == [utc("2026-06-01T07:00")]
        gap, twice = local("2026-03-29T02:30"), local("2026-10-25T02:30")
        assert moments(gap, BERLIN, repeat=True) == []
        assert moments(gap, BERLIN, repeat=False) == [utc("2026-03-29T01:00")]
        assert moments(twice, BERLIN, repeat=True) == [
            utc("2026-10-25T00:30"),
            utc("2026-10-25T01:30"),
        ]


class TestWindows:
    def test_it_starts_the_lead_before(self) -> None:
        plan = schedule("0 9 * * mon-fri", hours=3)
        nine = unix(BERLIN, 2026, 11, 23, 9)
        assert plan.window(nine - 90.001, 90.0) is None
        window = plan.window(nine - 90, 90.0)
        assert window
        assert (window.opens, window.ends) == (nine, nine + 10800)
        assert plan.window(nine + 10799.9, 90.0) == window
        assert plan.window(nine + 10800, 90.0) is None

    def test_windows_that_overlap(self) -> None:
        plan = schedule("0 * * * *", hours=3)
        noon = unix(BERLIN, 2026, 11, 23, 12)
        for minutes in (0, 1, 59):
            window = plan.window(noon + minutes * 60, 0)
            assert window
            assert window.opens == noon

    def test_a_lead_longer_than_the_gap(self) -> None:
        plan = schedule("0 9 * * *")
        window = plan.window(unix(BERLIN, 2026, 11, 23, 9, 30), 30 * 3600)
        assert window
        assert window.opens == unix(BERLIN, 2026, 11, 24, 9)

    def test_exceptions_are_local_days_of_the_opening(self) -> None:
        plan = schedule("0 0 * * *", SHANGHAI, 30, date(2026, 11, 24))
        # On the 24th in Shanghai the window that opened on the 23rd is still open.
        window = plan.window(unix(SHANGHAI, 2026, 11, 24, 1), 0)
        assert window
        assert window.opens == unix(SHANGHAI, 2026, 11, 23, 0)
        assert plan.window(unix(SHANGHAI, 2026, 11, 24, 7), 0) is None
        assert [w.opens for w in plan.upcoming(unix(SHANGHAI, 2026, 11, 23, 1), 1, 0)] == [
            unix(SHANGHAI, 2026, 11, 25, 0)
        ]

    def test_rare_days_are_found(self) -> None:
        leap = schedule("0 9 29 2 *").upcoming(utc("2026-11-23T00:00"), 2, 60)
        assert [schedule("* * * * *").at(w.opens).date() for w in leap] == [
            date(2028, 2, 29),
            date(2032, 2, 29),
        ]
        (fifth,) = schedule("0 0 * 2 MON#5").upcoming(utc("2026-11-23T00:00"), 1, 0)
        assert BERLIN.fromutc(datetime.fromtimestamp(fifth.opens, BERLIN)).year == 2044

    def test_a_schedule_that_is_all_exceptions_ends(self) -> None:
        days = frozenset(date(year, 2, 29) for year in range(2028, 2100, 4))
        plan = Schedule("s", "prewarm", Cron("0 9 29 2 *"), BERLIN, 60.0, exceptions=days)
        assert plan.upcoming(utc("2026-11-23T00:00"), 1, 0) == []

    def test_words(self) -> None:
        now = unix(BERLIN, 2026, 11, 23, 21)
        short, long = schedule("0 20 * * *", hours=11), schedule("0 20 * * *", hours=36)
        for plan, words in (
            (short, "20:00-07:00 Europe/Berlin"),
            (long, "Mon 20:00-Wed 08:00 Europe/Berlin"),
        ):
            window = plan.window(now, 0)
            assert window
            assert plan.words(window) == words


class TestCron:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "five fields"),
            ("0 9 * *", "five fields"),
            ("0 0 9 * * 1", "five fields"),
            ("@daily", "five fields"),
            ("60 9 * * *", "bad minute"),
            ("0 9 * * mon-fry", "bad day-of-week"),
            ("0 0 31 2 *", "bad day-of-month"),
            ("* * */20 * 1L", "never fires"),
        ],
    )
    def test_bad_ones(self, text: str, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            Cron(text)

    def test_spaces_do_not_matter(self) -> None:
        assert Cron("  0   9 * * MON ").text == "0 9 * * MON"


def calendar(*lines: str) -> str:
    event = ["BEGIN:VEVENT", *lines, "END:VEVENT"] if lines else []
    return "\r\n".join(["BEGIN:VCALENDAR", "VERSION:2.0", *event, "END:VCALENDAR", ""])


class TestCalendar:
    @pytest.mark.parametrize(
        ("lines", "days"),
        [
            (["DTSTART;VALUE=DATE:20261225", "DTEND;VALUE=DATE:20261227"], ["12-25", "12-26"]),
            (["DTSTART;VALUE=DATE:20261225"], ["12-25"]),
            (["DTSTART:20261225"], ["12-25"]),
            (["dtstart;value=date:20261225", "DTEND;VALUE=DATE:20261225"], ["12-25"]),
            (["DTSTART;VALUE=DATE:20261225", "DURATION:P3D"], ["12-25", "12-26", "12-27"]),
            (["DTSTART;VALUE=DATE:20261225", "STATUS:cancelled"], []),
            (["DTSTART;TZID=Europe/Berlin:20261225T090000"], []),
            # Folded, with a colon in a quoted parameter and an alarm with a duration of its own.
            (
                [
                    'DTSTART;X-NOTE="a:b;c";VALUE=DA',
                    " TE:20261225",
                    "BEGIN:VALARM",
                    "DURATION:PT15M",
                    "DTSTART;VALUE=DATE:20260101",
                    "END:VALARM",
                ],
                ["12-25"],
            ),
        ],
    )
    def test_days(self, lines: list[str], days: list[str]) -> None:
        expected = {date.fromisoformat(f"2026-{day}") for day in days}
        assert all_day_dates(calendar(*lines)) == expected

    def test_every_year(self) -> None:
        christmas = ["DTSTART;VALUE=DATE:20241225", "DTEND;VALUE=DATE:20241227"]
        days = all_day_dates(
            calendar(*christmas, "RRULE:FREQ=YEARLY;BYMONTH=12;BYMONTHDAY=25;WKST=MO",
                     "EXDATE;VALUE=DATE:20271225")
        )  # fmt: skip
        assert {date(2026, 12, 25), date(2026, 12, 26), date(2050, 12, 25)} <= days
        assert not {date(2027, 12, 25), date(2027, 12, 26), date(2023, 12, 25)} & days

    @pytest.mark.parametrize(
        ("rule", "years"),
        [
            ("COUNT=2", [2024, 2028]),
            ("UNTIL=20320228", [2024, 2028]),
            ("UNTIL=20320229T000000Z", [2024, 2028, 2032]),
            ("INTERVAL=3;COUNT=2", [2024, 2036]),
        ],
    )
    def test_a_leap_day_every_year(self, rule: str, years: list[int]) -> None:
        days = all_day_dates(calendar("DTSTART;VALUE=DATE:20240229", f"RRULE:FREQ=YEARLY;{rule}"))
        assert sorted(day.year for day in days) == years

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "no iCalendar"),
            ("<html>", "line 1 is no iCalendar line"),
            (calendar().replace("END:VCALENDAR", ""), "cut off"),
            (calendar("DTSTART;VALUE=DATE:20261332"), "line 4: '20261332' is no date"),
            (calendar("DTSTART;VALUE=DATE:20261225", "RRULE:FREQ=WEEKLY"), "line 5: RRULE"),
            (calendar("DTSTART;VALUE=DATE:20261225", "RRULE:FREQ=YEARLY;BYDAY=4TH"), "RRULE"),
            (calendar("DTSTART;VALUE=DATE:20261225", "RDATE;VALUE=DATE:20270101"), "RDATE"),
            (calendar("DTSTART;VALUE=DATE:20261225", "DURATION:PT5H"), "days or weeks"),
            (calendar("DTSTART;VALUE=DATE:20261225", "DTEND;VALUE=DATE:20251225"), "-365 days"),
            (calendar("DTSTART;VALUE=DATE:99991230", "DURATION:P5D"), "line 4: .* year 9999"),
            (calendar("DTSTART;VALUE=DATE:20261225", f"DURATION:P{5000 * '9'}D"), "line 5: "),
            (calendar("SUMMARY:no date"), "line 4: .* no DTSTART"),
            (calendar("DTSTART:2026-12-25"), "line 4: '2026-12-25' is neither"),
            (
                calendar("DTSTART:20261225", "BEGIN:VEVENT", "DTSTART:20270101"),
                "line 5: an event in",
            ),
            (calendar("BEGIN:VALARM", "DTSTART:20261225"), "line 6: END:VEVENT closes nothing"),
            (calendar("DTSTART:20261225", "END:VALARM"), "line 5: END:VALARM closes nothing"),
            (
                calendar().replace("VERSION:2.0", "BEGIN:VEVENT\nDTSTART:20261225"),
                "line 4: END:VCAL",
            ),
            (calendar("DTSTART:20261225", "DTSTART:20261226"), "line 5: a second DTSTART"),
            (calendar("DTSTART:20261225", *2 * ["RRULE:FREQ=YEARLY"]), "line 6: a second RRULE"),
            (calendar("DTSTART:20261225", "RRULE:FREQ=YEARLY;COUNT=0"), "line 5: COUNT=0"),
            (calendar("DTSTART:20261225", "RRULE:FREQ=YEARLY;INTERVAL=-1"), "line 5: INTERVAL=-1"),
            (calendar("DTSTART:20261225", "RRULE:FREQ=YEARLY;UNTIL=20250101"), "line 5: UNTIL is"),
            (calendar("DTSTART:20261225", "DURATION:P1D", "DTEND:20261226"), "DTEND and DURATION"),
        ],
    )
    def test_what_is_not_understood_is_an_error(self, text: str, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            all_day_dates(text)

    def test_a_file_of_repetitions_costs_little(self) -> None:
        """The same, read every 30 s, has taken all of a processor."""
        event = "BEGIN:VEVENT\nDTSTART:00010101\nDURATION:P3660D\nRRULE:FREQ=YEARLY\nEND:VEVENT\n"
        text = f"BEGIN:VCALENDAR\n{event * 160}END:VCALENDAR\n"
        assert 12_000 < len(text) < 14_000
        began = time.process_time()
        with pytest.raises(ValueError, match=r"line [0-9]+: more than 200000 days"):
            all_day_dates(text)
        assert time.process_time() - began < 1.0

    def test_a_repetition_that_began_long_ago_is_followed(self) -> None:
        text = calendar("DTSTART:00010101", "RRULE:FREQ=YEARLY;INTERVAL=2")
        days = all_day_dates(text)
        assert date(2027, 1, 1) in days
        assert date(2026, 1, 1) not in days
        assert all_day_dates(calendar("DTSTART:00010101", "RRULE:FREQ=YEARLY;COUNT=5")) == set()

    def test_files(self, tmp_path: Path) -> None:
        path = tmp_path / "holidays.ics"
        with pytest.raises(ConfigError, match=r"cannot read .*holidays\.ics"):
            read_calendar(path)
        path.write_bytes(b"\xef\xbb\xbf" + calendar("DTSTART;VALUE=DATE:20261225").encode())
        assert read_calendar(path) == {date(2026, 12, 25)}
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigError, match="UTF-8"):
            read_calendar(path)
