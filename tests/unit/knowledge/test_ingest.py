"""Files, documents and rows become sources; what cannot be read is told apart from what was named wrongly."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from twolane.domain.document import Document
from twolane.errors import DocumentRefused, UsageError
from twolane.knowledge.ingest import Source, read_documents, read_sources


def write(path: Path, content: bytes | str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def one(given: str) -> Source:
    (source,) = read_sources([given])
    return source


def text_of(source: Source) -> str:
    assert source.document is not None, source.problem
    return source.document.text


def refusal(*inputs: str) -> str:
    with pytest.raises(UsageError) as caught:
        read_sources(inputs)
    return str(caught.value)


# ── text ──


@pytest.mark.parametrize(
    "content",
    [
        "Zażółć — gęślą".encode(),
        b"\xef\xbb\xbf" + "Zażółć — gęślą".encode(),
        "Zażółć — gęślą".encode("utf-16"),
        b"\xfe\xff" + "Zażółć — gęślą".encode("utf-16-be"),
    ],
    ids=["utf-8", "utf-8 with BOM", "utf-16 little", "utf-16 big"],
)
def test_text_is_read_in_its_encoding_and_without_its_byte_order_mark(tmp_path: Path, content: bytes) -> None:
    source = one(write(tmp_path / "a.txt", content))
    assert (source.id, text_of(source)) == ("a.txt", "Zażółć — gęślą")
    assert source.document is not None
    assert source.document.source == str(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("Straße".encode("cp1252"), "not UTF-8 text (byte 4). Convert it"),
        ("plain".encode("utf-16-le"), "it is not text: byte 1 is zero"),
        (b"\xff\xfea", "it is not UTF-16 text"),
        (b"", "it has no text"),
        (b"\xef\xbb\xbf \n\t ", "it has no text"),
        (b"x" * 8_000_001, "8,000,001 characters are more than the 8,000,000 of a document; split it"),
    ],
    ids=["cp1252", "utf-16 without a mark", "half a character", "empty", "blank", "too many characters"],
)
def test_a_text_that_cannot_be_read_is_a_source_with_its_problem(tmp_path: Path, content: bytes, words: str) -> None:
    source = one(write(tmp_path / "a.txt", content))
    assert source.document is None
    assert words in source.problem


def test_a_huge_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "dump.txt"
    with path.open("wb") as file:
        file.truncate(50 * 2**20)
    assert one(str(path)).problem == "50 MB is more than the 32 MB a document may have; split it"


def test_every_ending_is_known_in_either_case(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, "text") for name in ("a.TXT", "b.text", "c.Md")]
    assert [source.id for source in read_sources(paths)] == ["a.TXT", "b.text", "c.Md"]


def test_those_who_need_every_document_are_told_of_the_one_that_cannot_be_read(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "a.txt", "text"), write(tmp_path / "b.txt", "")
    assert [document.text for document in read_documents([good])] == ["text"]
    with pytest.raises(DocumentRefused, match=r"b\.txt: it has no text"):
        read_documents([good, bad])
    with pytest.raises(DocumentRefused, match="1: a row is not a document"):
        read_documents([write(tmp_path / "c.jsonl", '{"id": 1}')])


# ── PDF ──


def test_a_pdf_with_a_text_layer_is_read_page_by_page(repository: Path) -> None:
    paths = sorted((repository / "examples" / "contracts").glob("*.pdf"))
    documents = {source.id: source.document for source in read_sources([str(path) for path in paths])}
    read = [document for document in documents.values() if document is not None]
    assert len(read) == len(paths) - 1
    for document in read:
        assert document.pages[0] == 0
        assert list(document.pages) == sorted(set(document.pages))
        assert all(document.text[start - 1] == "\n" for start in document.pages[1:])
        assert "\r" not in document.text


def test_a_scan_is_told_to_go_through_ocr(repository: Path) -> None:
    source = one(str(repository / "examples" / "contracts" / "23-forklift-lease-scan.pdf"))
    assert "hold no text: it is a scan. Run OCR on it first" in source.problem


@pytest.mark.parametrize("kind", ["garbage", "empty", "cut off", "page missing"])
def test_a_broken_pdf_is_a_problem_of_its_own_item(repository: Path, tmp_path: Path, kind: str) -> None:
    whole = next((repository / "examples" / "contracts").glob("*.pdf")).read_bytes()
    content = {
        "garbage": b"%PDF-1.7\n" + bytes(range(256)) * 50,
        "empty": b"",
        "cut off": whole[:300],
        "page missing": whole.replace(b"/Type /Page\n", b"/Type /Pigs\n").replace(b"/Type /Page ", b"/Type /Pigs "),
    }[kind]
    source = one(write(tmp_path / "a.pdf", content))
    assert source.document is None or kind == "page missing"
    assert source.problem or source.document


def test_an_encrypted_pdf_says_that_it_needs_a_password(tmp_path: Path) -> None:
    source = one(write(tmp_path / "secret.pdf", _encrypted_pdf()))
    assert "not a readable PDF" in source.problem
    assert "assword" in source.problem


def _encrypted_pdf() -> bytes:
    """A PDF whose encryption no empty password opens."""
    parts = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [] /Count 0 >>",
        b"<< /Filter /Standard /V 1 /R 2 /P -44 /O <" + b"41" * 32 + b"> /U <" + b"42" * 32 + b"> >>",
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, part)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"<< /Size 4 /Root 1 0 R /Encrypt 3 0 R /ID [<41><41>] >>"
    return out + b"xref\n0 4\n0000000000 65535 f \n%strailer\n%s\nstartxref\n%d\n%%%%EOF\n" % (table, trailer, len(out))


# ── JSON lines and CSV ──

LINES = '{"id": "a", "text": "one", "n": 1}\n\n{"id": 7, "text": "two"}\r\n{"id": "c", "n": 3}'


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.JSONL.GZ"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with BOM"])
def test_json_lines_are_rows_and_documents_where_they_have_a_text(tmp_path: Path, name: str, mark: bytes) -> None:
    content = mark + LINES.encode()
    path = write(tmp_path / name, gzip.compress(content) if name.lower().endswith("gz") else content)
    sources = read_sources([path])
    assert [source.id for source in sources] == ["a", "7", "c"]
    assert [source.document and source.document.text for source in sources] == ["one", "two", None]
    assert sources[0].document is not None
    assert sources[0].document.source == f"{path}:1"
    assert sources[2].row == {"id": "c", "n": 3}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{oops", "line 2: it is not JSON"),
        ('{"id": "a", "text": "\\ud800"}', "line 2: it is not JSON"),
        ("[1]", "line 2: each line is an object"),
        ('{"text": "x"}', "line 2: it has no id"),
        ('{"id": ""}', "line 2: it has no id"),
        ('{"id": null}', "line 2: it has no id"),
        ('{"id": true}', "line 2: it has no id"),
        ('{"id": 1.5}', "line 2: it has no id"),
    ],
)
def test_a_bad_line_stops_before_anything_starts_and_is_named(tmp_path: Path, line: str, words: str) -> None:
    assert words in refusal(write(tmp_path / "rows.jsonl", '{"id": "first"}\n' + line))


@pytest.mark.parametrize("kind", ["cut off", "flipped", "not gzip"])
def test_a_damaged_archive_stops_before_anything_starts(tmp_path: Path, kind: str) -> None:
    content = gzip.compress("\n".join(f'{{"id": {n}, "text": "{os.urandom(9).hex()}"}}' for n in range(99)).encode())
    half = len(content) // 2
    content = {
        "cut off": content[:half],
        "flipped": content[:half] + bytes(byte ^ 0xFF for byte in content[half : half + 20]) + content[half + 20 :],
        "not gzip": b"plain text",
    }[kind]
    assert "it cannot be read" in refusal(write(tmp_path / "rows.jsonl.gz", content)) or kind == "flipped"


def test_an_empty_text_in_a_row_is_the_problem_of_that_row(tmp_path: Path) -> None:
    source = one(write(tmp_path / "rows.jsonl", '{"id": "a", "text": "  "}'))
    assert (source.document, source.row, source.problem) == (None, {"id": "a", "text": "  "}, "it has no text")


def test_csv_rows_take_their_names_from_the_first_line(tmp_path: Path) -> None:
    content = '\ufeffid;x,text,price\n1,"two\nlines",5\n2,,\n'.replace("id;x", "id")
    first, second = read_sources([write(tmp_path / "rows.csv", content)])
    assert first.row == {"id": "1", "text": "two\nlines", "price": "5"}
    assert text_of(first) == "two\nlines"
    assert (second.id, second.document) == ("2", None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "its first line must name the columns, one of them id"),
        ("name,text\na,b\n", "its first line must name the columns, one of them id"),
        ("text,id\nonly text\n", "line 2: it has no id"),
        ("id,text\n,b\n", "line 2: it has no id"),
        ("id,text\n1,b,c\n", "line 2: it has more cells than the first line has names"),
        ('id,text\n1,"b\n', "it cannot be read as CSV"),
        ("id,text\n1,Stra\udcdfe\n", "it cannot be read as CSV"),
    ],
    ids=["empty", "no id column", "short row", "empty id", "long row", "open quote", "not UTF-8"],
)
def test_a_table_that_is_wrong_stops_before_anything_starts(tmp_path: Path, content: str, words: str) -> None:
    assert words in refusal(write(tmp_path / "rows.csv", content.encode("utf-8", "surrogateescape")))


# ── which files, which ids ──


def test_a_folder_is_read_with_its_subfolders_in_order_and_without_what_is_hidden_or_unknown(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/a.txt", "a/picture.png", ".hidden.txt", ".git/note.txt", "a/.cache/x.txt"):
        write(tmp_path / name, name)
    write(tmp_path / "rows.jsonl", '{"id": "row", "text": "x"}')
    (tmp_path / "folder.txt").mkdir()
    sources = read_sources([str(tmp_path)])
    assert [source.id for source in sources] == ["a/a.txt", "a/z.md", "b.txt", "row"]


def test_a_hidden_folder_that_is_named_itself_is_read(tmp_path: Path) -> None:
    write(tmp_path / ".inbox" / "a.txt", "text")
    assert one(str(tmp_path / ".inbox")).id == "a.txt"


def test_a_file_name_that_is_not_utf_8_gets_an_id_that_is(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    except OSError:
        pytest.skip("this file system only knows UTF-8 names")
    source = one(str(tmp_path))
    assert source.id == "caf\\udce9.txt"
    assert source.document is not None
    source.document.source.encode()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.txt", "gone.txt is not there. Check the path"),
        ("a.docx", "files ending in .docx cannot be read. Known endings: .txt"),
        ("Makefile", "files ending in nothing cannot be read"),
        ("empty", "there is nothing to read in"),
    ],
)
def test_a_path_that_is_wrong_stops_before_anything_starts(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    for there in ("a.docx", "Makefile"):
        write(tmp_path / there, "x")
    assert words in refusal(str(tmp_path / name))


def test_no_paths_at_all_are_nothing_to_read() -> None:
    assert "nothing to read in no inputs at all" in refusal()


def test_an_id_that_stands_twice_is_refused(tmp_path: Path) -> None:
    one_row = write(tmp_path / "rows.jsonl", '{"id": "a"}\n{"id": "a"}')
    assert "the id 'a' stands twice" in refusal(one_row)
    paths = [write(tmp_path / folder / "same.txt", folder) for folder in ("x", "y")]
    assert "the id 'same.txt' stands twice" in refusal(*paths)


class Row(BaseModel):
    id: str | int = ""
    name: str = "n"


def test_documents_and_rows_are_taken_as_they_are() -> None:
    sources = read_sources([Document("a", "text"), Document("b", " "), Row(id=3)])
    assert [source.id for source in sources] == ["a", "b", "3"]
    assert text_of(sources[0]) == "text"
    assert sources[1].problem == "it has no text"
    assert sources[2].row == {"id": 3, "name": "n"}


def test_a_row_without_an_id_is_refused() -> None:
    with pytest.raises(UsageError, match="has no id"):
        read_sources([Row()])
    with pytest.raises(UsageError, match="stands twice"):
        read_sources([Row(id=1), Row(id="1")])


def test_a_folder_of_twenty_thousand_files_is_read_once_each(tmp_path: Path) -> None:
    for folder in range(100):
        (tmp_path / f"{folder:02}" / "deep").mkdir(parents=True)
        for number in range(100):
            (tmp_path / f"{folder:02}" / f"{number:02}.txt").write_bytes(b"text")
            (tmp_path / f"{folder:02}" / "deep" / f"{number:02}.md").write_bytes(b"text")
    (tmp_path / "00" / "again").symlink_to(tmp_path)  # a folder that holds itself is not followed
    sources = read_sources([str(tmp_path)])
    assert len({source.id for source in sources}) == len(sources) == 20_000
    assert [source.id for source in (sources[0], sources[-1])] == ["00/00.txt", "99/deep/99.md"]
