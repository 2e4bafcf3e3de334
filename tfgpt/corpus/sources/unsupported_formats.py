"""Formats that hold text and are none: refused by name, with what to do, instead of learned with all their marks."""

from __future__ import annotations

from pathlib import Path

from tfgpt.corpus.sources import compressed

TABLE = "a table, not text; make it JSON Lines first (a record a line, with text or a dialogue), for example with "
PANDAS = "pandas.{read}({name!r}).to_json({made!r}, orient='records', lines=True)"
DOCUMENT = "{what}, not text; take the text out first, for example with {how}"
ARCHIVE = "an archive; unpack it and give the folder"

READ_BY_PANDAS = {
    ".csv": "read_csv",
    ".tsv": "read_table",
    ".xlsx": "read_excel",
    ".xls": "read_excel",
    ".ods": "read_excel",
    ".parquet": "read_parquet",
    ".arrow": "read_feather",
    ".feather": "read_feather",
}
PANDOC = "pandoc -t plain"
DOCUMENTS = {
    ".html": ("a web page", "trafilatura"),
    ".htm": ("a web page", "trafilatura"),
    ".xhtml": ("a web page", "trafilatura"),
    ".pdf": ("a PDF document", "pdftotext"),
    ".docx": ("a Word document", PANDOC),
    ".doc": ("a Word document", "libreoffice --convert-to txt"),
    ".odt": ("an OpenDocument text", PANDOC),
    ".rtf": ("a Rich Text document", PANDOC),
    ".epub": ("an e-book", PANDOC),
    ".ipynb": ("a notebook", "jupyter nbconvert --to markdown"),
}
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
UNKNOWN_COMPRESSIONS = (".bz2", ".xz", ".lz4", ".br")
# Pictures, sounds and films beside texts: nobody means to learn them.
MEDIA = (
    *(".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".svg", ".ico"),
    *(".mp3", ".wav", ".flac", ".ogg", ".m4a", ".mp4", ".mov", ".mkv", ".avi", ".webm"),
)


def is_media(path: Path) -> bool:
    """Whether a file is a picture, a sound or a film by its name."""
    return path.suffix.lower() in MEDIA


def unsupported_format(path: Path) -> str | None:
    """What a file is and what to do with it, when its name says that it is in a format that tfgpt does not read."""
    suffix = compressed.format_suffix(path)
    if suffix in READ_BY_PANDAS:
        made = path.name.split(".")[0] + ".jsonl"
        words = TABLE + PANDAS.format(read=READ_BY_PANDAS[suffix], name=path.name, made=made)
    elif suffix in DOCUMENTS:
        what, how = DOCUMENTS[suffix]
        words = DOCUMENT.format(what=what, how=how)
    elif suffix in ARCHIVES:
        return ARCHIVE
    elif suffix in UNKNOWN_COMPRESSIONS:
        return "compressed in a way that is not read here; unpack it, or compress it with gzip or zstd"
    elif is_media(path):
        return "a picture, a sound or a film, not text; leave it out"
    else:
        return None
    return f"{words} (or, to learn it as it stands, name it {path.name}.txt)" if path.suffix == suffix else words
