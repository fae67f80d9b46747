"""A video file before any decoder sees it: its name by content, and the closed list of why a file yields no frames.

Every stage that rejects a video writes the reason, so the list is a contract: code tells failures apart by it and
never by the text of an error. The operating system answers for missing, unreadable and empty files; what the
libraries answer for broken ones differs between their versions, so a file that nothing can open is told from a
truncated video by the signature its container begins with. The limit on pixels is there because a header of a few
bytes can ask for gigabytes.
"""

import hashlib
import os
import stat
from enum import StrEnum


class RejectReason(StrEnum):
    """The closed list; tables hold the values."""

    MISSING = "missing"  # no such file
    UNREADABLE = "unreadable"  # no right to read it, or a directory
    EMPTY_FILE = "empty_file"
    NOT_A_VIDEO = "not_a_video"  # no known container
    NO_VIDEO_STREAM = "no_video_stream"  # a container with sound, subtitles or a cover picture alone
    TRUNCATED = "truncated"  # a video's beginning, cut off before anything that can be decoded
    NO_FRAMES = "no_frames"  # a video stream without a frame, or none in the span asked for
    TOO_LARGE = "too_large"  # frames of more than MAX_FRAME_PX pixels
    DECODE_ERROR = "decode_error"  # frames are there and none can be decoded, or the decoder's process died
    DEADLINE = "deadline"  # not done in the time allowed


# 8192 x 8192 pixels, four times 4K and above 8K (7680 x 4320): 200 MB as RGB. Ours; ffmpeg's own limit is 2^31 bytes.
MAX_FRAME_PX = 2**26

# Demuxers, by their first name in libav, that read the file which they are given. Others read what its bytes name, whatever it is called: a
# DASH manifest or a playlist that is named clip.mp4 would show any file of this machine, as if it were the clip.
FORMATS = ",".join(
    (
        *(
            "mov",
            "matroska",
            "avi",
            "flv",
            "asf",
            "mpeg",
            "mpegts",
            "mpegvideo",
            "m4v",
            "ogg",
            "gif",
            "mxf",
            "dv",
            "nut",
            "ivf",
            "wtv",
            "rm",
        ),
        *("h261", "h263", "h264", "hevc", "vvc", "obu", "vc1", "mjpeg", "yuv4mpegpipe"),  # a stream without a container
        *("mp3", "wav", "flac", "aac"),  # sound, to be told as such
    )
)

_SIGNATURES = (  # (offset in bytes, bytes): what the containers of the clips that we meet begin with
    (4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (4, b"free"), (4, b"wide"), (4, b"skip"),  # MP4, MOV
    (0, b"\x1aE\xdf\xa3"),  # Matroska, WebM
    (8, b"AVI "), (0, b"FLV"), (0, b"OggS"), (0, b"GIF8"),
    (0, b"\x00\x00\x01\xba"), (0, b"\x00\x00\x01\xb3"),  # MPEG program stream, MPEG video
    (0, b"0&\xb2u\x8ef\xcf\x11"),  # ASF, WMV
)  # fmt: skip


class VideoDecodeError(ValueError):
    """A video that yields no frames; `reason` is for programs and tables, `detail` for people."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def check_file(path: str | os.PathLike[str]) -> None:
    """Raises VideoDecodeError (missing, unreadable, empty_file). A named pipe passes, and is not opened."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise VideoDecodeError(RejectReason.UNREADABLE, f"{os.fspath(path)} is a directory, expected a video file")
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb"):  # os.access would ask for the real user, not the effective one
                pass
            if status.st_size == 0:
                raise VideoDecodeError(RejectReason.EMPTY_FILE, f"{os.fspath(path)} has 0 bytes")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VideoDecodeError(RejectReason.MISSING, str(error)) from error
    except OSError as error:
        raise VideoDecodeError(RejectReason.UNREADABLE, str(error)) from error


def content_id(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the content, hex: the same video under any path. Raises VideoDecodeError as `check_file`."""
    check_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_id(digest: str) -> str:
    """What names a thing in tables and adapters, of its SHA-256: 80 bits. Among a billion clips, two share one with a chance of 4e-7."""
    return digest[:20]


def check_frame_size(width_px: int, height_px: int) -> None:
    """Raises VideoDecodeError (too_large) above MAX_FRAME_PX."""
    if width_px * height_px > MAX_FRAME_PX:
        raise VideoDecodeError(RejectReason.TOO_LARGE, f"frames of {width_px} x {height_px} px, expected <= {MAX_FRAME_PX} px")


def unopened(path: str | os.PathLike[str], detail: str) -> VideoDecodeError:
    """The error for a file that no demuxer opens: "truncated" if it begins like a video, else "not_a_video"."""
    with open(path, "rb") as file:
        head = file.read(16)
    begins_like_a_video = any(head[at : at + len(magic)] == magic for at, magic in _SIGNATURES)
    return VideoDecodeError(RejectReason.TRUNCATED if begins_like_a_video else RejectReason.NOT_A_VIDEO, detail)


def ffmpeg_url(path: str | os.PathLike[str]) -> str:
    """A name that ffmpeg takes for this file and nothing else: without "file:", "a:b.mp4" names a protocol."""
    return "file:" + os.path.abspath(os.fspath(path))


def quarter_turns(rotation_deg: float) -> int:
    """Counterclockwise quarter turns (0 to 3) nearest to an angle; phones write multiples of 90 degrees."""
    return round(rotation_deg / 90) % 4
