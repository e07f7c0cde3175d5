"""What the adapter for files reads, and what it will not take."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.adapters.files import Files, csv_frame, json_frame
from etl.frames import FAULT, LINE, PLACE, SourceError
from etl.schema import SHAPES

AFFILIATIONS = "id,name,town,country\n"
FIELDS = SHAPES["affiliation"].fields


def read(office, table="affiliation"):
    return Files(folder=office.folder).read().frames[table]


def values(frame):
    """What each row says, without what it is silent of."""
    said = frame.drop(PLACE, LINE, FAULT)
    return [{name: cell for name, cell in row.items() if cell} for row in said.to_dicts()]


@pytest.mark.parametrize(
    ("content", "said", "lines"),
    [
        pytest.param(AFFILIATIONS + "a,A,,\nb,B,,\n", [{"id": "a", "name": "A"}, {"id": "b", "name": "B"}], [2, 3], id="plain"),
        pytest.param("\ufeff" + AFFILIATIONS + "a,A,,\n", [{"id": "a", "name": "A"}], [2], id="byte-order-mark"),
        pytest.param("name,id\r\nA,a\r\n", [{"id": "a", "name": "A"}], [2], id="windows-and-another-order"),
        pytest.param(AFFILIATIONS + "\n\na,A,,\n\n", [{"id": "a", "name": "A"}], [4], id="empty-lines"),
        pytest.param(
            'id,name\na,"two\nlines, ""quoted"""\nb,B\n',
            [{"id": "a", "name": 'two\nlines, "quoted"'}, {"id": "b", "name": "B"}],
            [2, 4],
            id="a-cell-of-two-lines",
        ),
        pytest.param("id , name\na,Институт 東京\n", [{"id": "a", "name": "Институт 東京"}], [2], id="blanks-and-scripts"),
        pytest.param(AFFILIATIONS, [], [], id="no-rows"),
    ],
)
def test_csv_is_read_with_its_lines(office, content, said, lines):
    office.put_bytes("affiliations.csv", content.encode())
    frame = read(office)
    assert values(frame) == said
    assert frame[LINE].to_list() == lines
    assert set(frame[PLACE]) <= {"affiliations.csv"}


def test_the_objects_of_a_json_file_are_counted(office):
    office.put_bytes("affiliations.json", b'\n[\n{"id": "a",\n "name": "A", "town": null},\n\n{"id": "b", "name": "B"}]\n')
    frame = read(office)
    assert values(frame) == [{"id": "a", "name": "A"}, {"id": "b", "name": "B"}]
    assert frame[LINE].to_list() == [1, 2]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        pytest.param('["A"]', "name: should be text or a number, not list", id="list"),
        pytest.param("true", "name: should be text or a number, not bool", id="truth"),
        pytest.param("NaN", "name: nan is not a number", id="nan"),
        pytest.param('"\\ud800"', "name: holds half a character", id="half-a-character"),
        pytest.param('"A", "nmae": "A"', "there is no field 'nmae'", id="misspelt"),
        pytest.param("17", None, id="number"),
    ],
)
def test_a_json_value_that_cannot_be_meant_is_a_fault_of_its_row(office, value, fault):
    office.put_bytes("affiliations.json", b'[{"id": "a", "name": %s}]' % value.encode())
    [told] = read(office)[FAULT]
    assert told == fault or fault in told


def test_lists_and_objects_in_json_are_kept_for_plans(office):
    limits = b'[{"roles": ["staff"]}]'
    office.put_bytes("plans.json", b'[{"id": "p", "limits": %s, "lifetimes": {}}]' % limits)
    assert values(read(office, "plan")) == [{"id": "p", "limits": limits.decode(), "lifetimes": "{}"}]


def test_parquet_is_read_in_its_own_types(office):
    (office.folder / "users.csv").unlink()
    frame = pl.DataFrame({"id": [1, 2], "login": ["ann", "bob"], "family_name": ["L", "O"]})
    frame.write_parquet(office.folder / "users.parquet")
    assert read(office, "user").drop(PLACE).equals(frame)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"PAR1", "users.parquet: is not Parquet", id="broken"),
        pytest.param(pl.DataFrame({"id": ["1"]}), "users.parquet:1: the column 'family_name' is missing", id="column-missing"),
    ],
)
def test_parquet_that_cannot_be_trusted_stops_the_run(office, content, message):
    (office.folder / "users.csv").unlink()
    file = office.folder / "users.parquet"
    file.write_bytes(content) if isinstance(content, bytes) else content.write_parquet(file)
    with pytest.raises(SourceError, match=message):
        read(office, "user")


def test_an_empty_json_list_is_no_rows(office):
    office.put_bytes("affiliations.json", b" [ ] \n")
    assert read(office).height == 0


@pytest.mark.parametrize("line", ["a", "a,A,,,", "a,A,"], ids=["short", "long", "one-short"])
def test_a_row_with_another_number_of_cells_has_a_fault(office, line):
    office.put_bytes("affiliations.csv", f"{AFFILIATIONS}{line}\nb,B,,\n".encode())
    bad, good = read(office)[FAULT]
    assert "the first line names 4 columns" in bad
    assert good is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("a.csv", b"", "affiliations.csv: is empty; its first line must name the columns: id, name", id="empty"),
        pytest.param("a.csv", b"id,nmae\n", "affiliations.csv:1: there is no column 'nmae'; known are id, name", id="misspelt"),
        pytest.param("a.csv", b"id,name,instance_quota\n", "there is no column 'instance_quota'", id="not-a-sources"),
        pytest.param("a.csv", b"id,name,id\n", "affiliations.csv:1: the column 'id' is there twice", id="twice"),
        pytest.param("a.csv", b"id,town\n", "affiliations.csv:1: the column 'name' is missing", id="missing"),
        pytest.param("a.csv", b"id;name\na;A\n", "there is no column 'id;name'", id="semicolons"),
        pytest.param("a.csv", b'id,name\na,"A\nb,B\n', "affiliations.csv:2: is not CSV: unexpected end of data", id="quote-open"),
        pytest.param("a.csv", b'id,name\na,"A"x\n', "affiliations.csv:2: is not CSV", id="quote-inside"),
        pytest.param("a.csv", b"id,name\na," + b"A" * 200_000, "affiliations.csv:2: is not CSV: field larger", id="huge-cell"),
        pytest.param("a.csv", "id,name\na,Ä\nb,É\n".encode("latin-1"), "affiliations.csv:2: is not UTF-8", id="latin-1"),
        pytest.param("a.csv", "id,name\n".encode("utf-16"), "affiliations.csv:1: is not UTF-8", id="utf-16"),
        pytest.param("a.json", b"", "affiliations.json:1: is not JSON", id="json-empty"),
        pytest.param("a.json", b'{"id": "a"}', "must be a list of objects", id="json-object"),
        pytest.param("a.json", b"null", "must be a list of objects", id="json-null"),
        pytest.param("a.json", b'[{"id": "a"},\n', "affiliations.json:2: is not JSON", id="json-cut-off"),
        pytest.param("a.json", b'[{"id": "a"}\n{"id": "b"}]', "affiliations.json:2: is not JSON", id="json-no-comma"),
        pytest.param("a.json", b'[{"id": "a"}] x', "affiliations.json:1: is not JSON: Extra data", id="json-and-more"),
        pytest.param("a.json", b'[{"id": "a"},]', "affiliations.json:1: is not JSON", id="json-comma-at-end"),
        pytest.param("a.json", b'[{"id": "a", "id": "b"}]', "a name is there twice", id="json-name-twice"),
        pytest.param("a.json", b"[\n1, 2]", "must be a list of objects", id="json-number"),
        pytest.param("a.json", b"[" * 100_000, "affiliations.json: is not JSON", id="json-deep"),
        pytest.param("a.json", b'[{"id": ' + b"9" * 5000 + b"}]", "affiliations.json: is not JSON", id="json-long-number"),
    ],
)
def test_a_file_that_cannot_be_trusted_as_a_whole_stops_the_run(office, everything, name, content, message):
    office.load()
    before = everything()
    office.put_bytes(f"affiliations{name[1:]}", content)
    with pytest.raises(SourceError) as caught:
        office.load()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert everything() == before


@pytest.mark.parametrize("name", ["users", "instruments", "proposals", "experiments", "experiment_members"])
def test_a_missing_mandatory_file_stops_the_run(office, everything, name):
    office.load()
    before = everything()
    (office.folder / f"{name}.csv").unlink()
    with pytest.raises(SourceError, match=rf"{name}\.csv missing"):
        office.load()
    assert everything() == before


def test_a_missing_folder_stops_the_run(tmp_path):
    with pytest.raises(SourceError, match="there is no such folder"):
        Files(folder=tmp_path / "nowhere").read()


def test_a_folder_in_place_of_a_file_stops_the_run(office):
    (office.folder / "plans.csv").mkdir()
    with pytest.raises(SourceError, match=r"plans\.csv: cannot be read: Is a directory"):
        read(office)


def test_two_files_for_one_table_stop_the_run(office):
    (office.folder / "users.json").write_text("[]")
    with pytest.raises(SourceError, match=r"both users\.csv and users\.json"):
        read(office)


@pytest.mark.parametrize("reader", [csv_frame, json_frame])
@given(text=st.text(alphabet='[]{},:"id\n nametru0;\\x\x00', max_size=60))
def test_any_text_is_read_or_refused(reader, text):
    try:
        frame = reader("f", text, FIELDS)
    except SourceError:
        return
    assert set(frame.columns) <= {*FIELDS, PLACE, LINE, FAULT}
    assert frame.height == 0 or frame[LINE].min() >= 1
