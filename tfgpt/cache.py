"""Lists the entries of the cache, and removes one of them or all that were not used for some days.

`python -m tfgpt.cache` lists the entries with their sources, sizes and last uses. `--remove=tokens/1a2b3c` removes one,
`--unused_days=30` all that were not used for 30 days. Removed entries are made again when they are needed.
"""

from __future__ import annotations

import sys
import time

from tfgpt.common.atomic_files import recover_leftovers
from tfgpt.common.command_line import Command
from tfgpt.common.errors import SettingError
from tfgpt.common.formatting import format_bytes
from tfgpt.corpus.cache import LEFTOVER_SECONDS, CacheEntry, cache_directory, list_entries, remove_entry
from tfgpt.corpus.config import CacheConfig

HASH_DIGITS = 12


def run(cache: CacheConfig) -> None:
    """Lists the entries, or removes some."""
    folder = cache_directory(cache.cache_dir)
    found = list_entries(folder)
    if not cache.remove and cache.unused_days is None:
        if found:
            print(f"{'ENTRY':<28}  {'SIZE':>9}  {'LAST USED':<10}  FROM")
        for entry in found:
            stage, name = entry.name.split("/", 1)
            used = time.strftime("%Y-%m-%d", time.localtime(entry.used))
            label = f"{stage}/{name[:HASH_DIGITS]}"
            print(f"{label:<28}  {format_bytes(entry.size):>9}  {used}  {', '.join(entry.text)}".rstrip())
        print(f"{format_bytes(sum(entry.size for entry in found))} in {len(found)} entries of {folder}")
        return
    doomed = [find_entry(found, name) for name in cache.remove]
    freed = 0
    if cache.unused_days is not None:
        oldest = time.time() - cache.unused_days * 86400
        doomed += [entry for entry in found if entry.used <= oldest and entry not in doomed]
        freed += sum(recover_leftovers(stage, LEFTOVER_SECONDS) for stage in {entry.path.parent for entry in found})
    for entry in doomed:
        remove_entry(entry)
        freed += entry.size
        print(f"Removed {entry.name} ({format_bytes(entry.size)})", flush=True)
    print(f"{format_bytes(freed)} freed, {len(doomed)} of {len(found)} entries of {folder} removed")


def find_entry(found: list[CacheEntry], name: str) -> CacheEntry:
    fitting = [entry for entry in found if entry.name.startswith(name)]
    if len(fitting) != 1:
        problem = f"{len(fitting)} entries begin with {name}; give more of it" if fitting else f"no entry {name}"
        raise SettingError("remove", f"{problem}; python -m tfgpt.cache lists them")
    return fitting[0]


COMMAND = Command("cache", __doc__, [CacheConfig], run)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())
