"""File formats that are refused by name, with the way to convert them."""

from __future__ import annotations

from pathlib import Path

from tfgpt.corpus.sources.compressed import format_suffix

PANDAS_READERS = {
    **{".csv": "read_csv", ".tsv": "read_table", ".parquet": "read_parquet"},
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "read_excel"),
    **dict.fromkeys((".arrow", ".feather"), "read_feather"),
}
DOCUMENTS = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), ("a web page", "trafilatura")),
    ".pdf": ("a PDF document", "pdftotext"),
    ".docx": ("a Word document", "pandoc -t plain"),
    ".doc": ("a Word document", "libreoffice --convert-to txt"),
    ".odt": ("an OpenDocument text", "pandoc -t plain"),
    ".rtf": ("a Rich Text document", "pandoc -t plain"),
    ".epub": ("an e-book", "pandoc -t plain"),
    ".ipynb": ("a notebook", "jupyter nbconvert --to markdown"),
}
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
UNKNOWN_COMPRESSIONS = (".bz2", ".xz", ".lz4", ".br")
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".svg", ".ico")
SOUNDS_AND_FILMS = (".mp3", ".wav", ".flac", ".ogg", ".m4a", ".mp4", ".mov", ".mkv", ".avi", ".webm")


def is_media(path: Path) -> bool:
    """Returns whether a file's name is that of a picture, a sound or a film."""
    return path.suffix.lower() in (*PICTURES, *SOUNDS_AND_FILMS)


def unsupported_format(path: Path) -> str | None:
    """Returns the format of a file that is not read, by its name, and how to convert it; None for a supported one."""
    suffix = format_suffix(path)
    if suffix in PANDAS_READERS:
        call = f"pandas.{PANDAS_READERS[suffix]}({path.name!r})"
        made = path.name.split(".")[0] + ".jsonl"
        problem = (
            "a table, not text; make it JSON Lines first (one record per line, with text or a dialogue), for example "
            f"with {call}.to_json({made!r}, orient='records', lines=True)"
        )
    elif suffix in DOCUMENTS:
        kind, tool = DOCUMENTS[suffix]
        problem = f"{kind}, not text; take the text out first, for example with {tool}"
    elif suffix in ARCHIVES:
        return "an archive; unpack it and give the folder"
    elif suffix in UNKNOWN_COMPRESSIONS:
        return "compressed in a way that is not read here; unpack it, or compress it with gzip or zstd"
    elif is_media(path):
        return "a picture, a sound or a film, not text; leave it out"
    else:
        return None
    return f"{problem} (or, to learn it as it stands, name it {path.name}.txt)" if path.suffix == suffix else problem
