"""Files: read within bounds, written whole, and tables of CSV, which `batchsim.files.tables` reads."""

from batchsim.files.reading import (
    MAX_BYTES,
    MAX_COUNT,
    MAX_DEPTH,
    decoded,
    parsed_json,
    read_bytes,
    read_json,
    read_text,
    reason,
    unzipped,
)
from batchsim.files.writing import (
    check_file,
    cleanly,
    json_text,
    remove_dead_partials,
    replacing,
    resolved,
    sibling,
    write_whole,
)

__all__ = [
    "MAX_BYTES",
    "MAX_COUNT",
    "MAX_DEPTH",
    "check_file",
    "cleanly",
    "decoded",
    "json_text",
    "parsed_json",
    "read_bytes",
    "read_json",
    "read_text",
    "reason",
    "remove_dead_partials",
    "replacing",
    "resolved",
    "sibling",
    "unzipped",
    "write_whole",
]
