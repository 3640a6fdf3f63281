"""README.ru.md says what README.md says: a change of one without the other fails."""

import itertools
import re
from urllib.parse import unquote, urlsplit

import pytest

from helpers import ROOT

ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
RUSSIAN = (ROOT / "README.ru.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def sections(text, end):
    """The translated sections, each from its title on, without the line that leads to the other language."""
    text, found, _ = text.partition(f"\n{end}\n")
    assert found, end
    text = re.sub(r"^.*\bREADME(\.ru)?\.md\b.*\n+", "", text, count=1, flags=re.MULTILINE)
    starts = [
        match.start()
        for match in re.finditer(r"^#+ ", CODE.sub(lambda block: "." * len(block[0]), text), re.MULTILINE)
    ]
    return [text[start:end] for start, end in itertools.pairwise([*starts, None])]


def titles(text):
    return re.findall(r"^(#+) (.+)$", CODE.sub("", text), re.MULTILINE)


def prose(text):
    """The lines that are neither code nor empty."""
    return [line for line in CODE.sub("", text).splitlines() if line]


def shape(line):
    """What a line has in every language: its kind, and in a table the number of cells and its code."""
    if line.startswith("|"):
        return len(re.findall(r"(?<!\\)\|", line)), sorted(re.findall(r"`[^`]+`", line))
    return re.match(r"#+ |\d+\. |- |", line)[0]


def anchors(text):
    """What GitHub makes of the titles."""
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in titles(text)]


TRANSLATED = sections(ENGLISH, "## Configuration")
TRANSLATION = sections(RUSSIAN, "## Остальное")
each_section = pytest.mark.parametrize(
    "english, russian",
    list(zip(TRANSLATED, TRANSLATION, strict=False)),       # their number is a test of its own
    ids=[section.partition("\n")[0].lstrip("# ") for section in TRANSLATED[: len(TRANSLATION)]],
)


def test_the_titles_are_the_same_in_number_and_level():
    levels = [[title.partition(" ")[0] for title in found] for found in (TRANSLATED, TRANSLATION)]
    assert levels[0] == levels[1]


def test_the_code_is_the_same_in_the_same_order():
    assert CODE.findall(RUSSIAN) == [block for section in TRANSLATED for block in CODE.findall(section)]


@each_section
def test_a_section_has_the_same_code(english, russian):
    assert CODE.findall(russian) == CODE.findall(english)


@each_section
def test_a_section_has_the_same_paragraphs_items_and_rows(english, russian):
    assert [shape(line) for line in prose(russian)] == [shape(line) for line in prose(english)]


@each_section
def test_a_section_names_the_same_things(english, russian):
    names = [
        set(
            re.findall(
                r"`[^`]+`|\]\([^#)]+\)|https?://[\w:./-]*\w|\b\d{3,}\b",
                re.sub(r"(?<=\d)[,\u00a0](?=\d{3}\b)", "", "\n".join(prose(text))),
            )
        )
        for text in (english, russian)
    ]
    assert names[0] == names[1]


@each_section
def test_a_section_is_in_russian(english, russian):
    for line in prose(russian):
        if line != "# Task Manager" and not re.fullmatch(r"[| -]+", line):
            assert re.search("[а-яё]", line), line


@pytest.mark.parametrize("name, text, other", [
    ("README.md", ENGLISH, "README.ru.md"), ("README.ru.md", RUSSIAN, "README.md"),
    ("CONTRIBUTING.md", CONTRIBUTING, "README.md"),
], ids=["English", "Russian", "contributing"])
def test_the_links_lead_somewhere(name, text, other):
    links = re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", text))
    assert other in links
    for link in links:
        address = urlsplit(link)
        if not address.scheme:
            file = ROOT / (address.path or name)
            assert file.is_file(), link
            if address.fragment:
                assert unquote(address.fragment) in anchors(file.read_text(encoding="utf-8")), link


def test_the_page_names_a_section_that_readme_has():
    words = (ROOT / "static" / "words.js").read_text(encoding="utf-8")
    named = re.findall(r"README[^“«\"]+[“«](.+?)[”»]", words)
    assert len(named) == 2      # in two languages
    assert set(named) <= {title for _, title in titles(ENGLISH)}
