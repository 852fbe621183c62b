"""Run inside a namespace: `offload.py DEVICE...` makes checksums and segmentation software's work there, so that frames
can be relayed and read as on a wire."""

import ctypes
import fcntl
import socket
import struct
import sys
from contextlib import suppress

SIOCETHTOOL = 0x8946
SWITCHES = (0x1F, 0x24, 0x2C, 0x17, 0x15)  # ETHTOOL_S{TSO,GSO,GRO,TXCSUM,RXCSUM}


def main() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for device in sys.argv[1:]:
            for switch in SWITCHES:
                off = bytearray(struct.pack("II", switch, 0))
                where = ctypes.addressof((ctypes.c_char * len(off)).from_buffer(off))
                request = struct.pack("16sP", device.encode(), where).ljust(40, b"\0")
                with suppress(OSError):  # what it cannot switch it does not do
                    fcntl.ioctl(sock, SIOCETHTOOL, request)


main()
