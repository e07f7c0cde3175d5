"""What the adapter for files reads, and what it will not take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.adapters.files import Files, _csv_rows, _json_rows
from etl.frames import SourceError

AFFILIATIONS = "id,name,town,country\n"


def read(office, table="affiliation"):
    return Files(office.folder).read()[table]


@pytest.mark.parametrize(
    ("content", "values", "lines"),
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
def test_csv_is_read_with_its_lines(office, content, values, lines):
    office.put_bytes("affiliations.csv", content.encode())
    rows = read(office)
    assert [row.values for row in rows] == values
    assert [row.line for row in rows] == lines


def test_lists_in_csv_are_separated_by_semicolons(office):
    office.put("plans", "id,name,image,flavor,cores,memory_mb,instruments,roles", "p,Plan,i,f,2,4096,ID16; D22 ;,")
    [row] = read(office, "plan")
    assert row.values["instruments"] == ["ID16", "D22"]
    assert "roles" not in row.values


def test_json_is_read_with_its_lines(office):
    office.put_bytes("affiliations.json", b'\n[\n{"id": "a",\n "name": "A", "town": null},\n\n{"id": "b", "name": "B"}]\n')
    assert [(row.line, row.values) for row in read(office)] == [(3, {"id": "a", "name": "A"}), (6, {"id": "b", "name": "B"})]


def test_an_empty_json_list_is_no_rows(office):
    office.put_bytes("affiliations.json", b" [ ] \n")
    assert read(office) == []


@pytest.mark.parametrize("line", ["a", "a,A,,,", "a,A,"], ids=["short", "long", "one-short"])
def test_a_row_with_another_number_of_cells_has_a_fault(office, line):
    office.put_bytes("affiliations.csv", f"{AFFILIATIONS}{line}\nb,B,,\n".encode())
    bad, good = read(office)
    assert "the first line names 4 columns" in bad.fault
    assert good.fault is None


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
        pytest.param("a.json", b"", "affiliations.json: must be a list of objects", id="json-empty"),
        pytest.param("a.json", b'{"id": "a"}', "must be a list of objects", id="json-object"),
        pytest.param("a.json", b"null", "must be a list of objects", id="json-null"),
        pytest.param("a.json", b'[{"id": "a"},\n', "affiliations.json:2: is not JSON", id="json-cut-off"),
        pytest.param("a.json", b'[{"id": "a"}\n{"id": "b"}]', "affiliations.json:1: is not JSON: there is no", id="json-no-comma"),
        pytest.param("a.json", b'[{"id": "a"}] x', "affiliations.json:1: is not JSON: there is no", id="json-and-more"),
        pytest.param("a.json", b'[{"id": "a"},]', "affiliations.json:1: is not JSON", id="json-comma-at-end"),
        pytest.param("a.json", b'[{"id": "a",\n"town": NaN}]', "NaN is not a number", id="json-nan"),
        pytest.param("a.json", b'[{"id": "a", "id": "b"}]', "a name is there twice", id="json-name-twice"),
        pytest.param("a.json", b"[\n1, 2]", "affiliations.json:2: must be an object, not int", id="json-number"),
        pytest.param("a.json", b"[" * 100_000, "affiliations.json:1: is not JSON", id="json-deep"),
        pytest.param("a.json", b'[{"id": ' + b"9" * 5000 + b"}]", "affiliations.json:1: is not JSON", id="json-long-number"),
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
        Files(tmp_path / "nowhere").read()


def test_a_folder_in_place_of_a_file_stops_the_run(office):
    (office.folder / "plans.csv").mkdir()
    with pytest.raises(SourceError, match=r"plans\.csv: cannot be read: Is a directory"):
        read(office)


def test_two_files_for_one_table_stop_the_run(office):
    (office.folder / "users.json").write_text("[]")
    with pytest.raises(SourceError, match=r"both users\.csv and users\.json"):
        read(office)


@pytest.mark.parametrize("reader", [lambda text: _csv_rows("f", text, "affiliation"), lambda text: _json_rows("f", text)])
@given(text=st.text(alphabet='[]{},:"id\n nametru0;\\x\x00', max_size=60))
def test_any_text_is_read_or_refused(reader, text):
    try:
        rows = list(reader(text))
    except SourceError:
        return
    assert all(isinstance(row.values, dict) and row.line >= 1 for row in rows)
