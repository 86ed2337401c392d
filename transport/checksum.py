"""CRC-32 as in zlib and gzip, of what travels: by isal where that is installed, which is several times faster.

Both take anything with a buffer and give the same numbers; only `crc32` is for others.
"""

try:
    from isal.isal_zlib import crc32 as crc32
except ImportError:  # no wheel for this machine
    from zlib import crc32 as crc32
