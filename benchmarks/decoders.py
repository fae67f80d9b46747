"""The decoders that `benchmarks.decode` lets compete, and the clips: path -> 12 chosen frames as RGB in memory, each tool on one thread.

Each reader opens the file anew, as a stage that sees a video once must. Rivals are told how many frames there are, the rate and the sizes,
which they would have to find out first; ours reads times from the packets. Where a tool can resize while it decodes, it does.
"""

import itertools
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import ffmpeg
import numpy as np
from jaxtyping import Int64, UInt8

from video2lora.ffmpeg_program import ffmpeg_program, probe
from video2lora.pixels import fitted_size
from video2lora.sampling import Sampling
from video2lora.video import VideoDecodeError, VideoInfo, decode

N_FRAMES = 12
RATE = 25  # frames/s
GOPS = {"one GOP, 5 s": (5, 250), "3 min, GOP 50": (180, 50), "3 min, GOP 250": (180, 250)}  # seconds, frames from keyframe to keyframe
PART_S = 60  # what is encoded of the long ones, then repeated: a whole number of GOPs
SELECT = "ffmpeg-python, select"  # decodes everything


@dataclass(frozen=True)
class Clip:
    """What rivals are told of it. The shorter edge is even."""

    name: str
    path: str
    n_shown: int
    width_px: int
    height_px: int

    @property
    def numbers(self) -> Int64[np.ndarray, " n_frames"]:
        """Of the frames on show at uniform times; frames of a constant rate."""
        return np.floor(np.linspace(0, self.n_shown - 1, N_FRAMES) + 1e-6).astype(np.int64)

    def size(self, edge_px: int | None) -> tuple[int, int]:
        """(height, width) after the resize to a longest edge; None: as it is."""
        return (self.height_px, self.width_px) if edge_px is None else fitted_size(self.height_px, self.width_px, longest_edge_px=edge_px)


Read = Callable[[Clip, int | None], UInt8[np.ndarray, "n_frames height width 3"]]


# --- the tools; each opens the file anew ---


def ours(clip: Clip, edge_px: int | None) -> UInt8[np.ndarray, "n_frames height width 3"]:
    return decode(clip.path, Sampling(n_frames=N_FRAMES), longest_edge_px=edge_px or max(clip.size(None))).images


def torchcodec_reader(seek_mode: str) -> Read:
    """Raises ImportError, or RuntimeError where it finds no libav."""
    decoders, transforms = import_module("torchcodec.decoders"), import_module("torchcodec.transforms")

    def read(clip: Clip, edge_px: int | None) -> np.ndarray:
        resize = None if edge_px is None else [transforms.Resize(clip.size(edge_px))]
        decoder = decoders.VideoDecoder(clip.path, seek_mode=seek_mode, dimension_order="NHWC", transforms=resize)
        return np.asarray(decoder.get_frames_at(clip.numbers.tolist()).data.numpy())

    return read


def decord_reader() -> Read:
    """Raises ImportError."""
    decord = import_module("decord")

    def read(clip: Clip, edge_px: int | None) -> np.ndarray:
        height_px, width_px = clip.size(edge_px)
        reader = decord.VideoReader(clip.path, ctx=decord.cpu(0), num_threads=1, width=width_px, height=height_px)
        return np.asarray(reader.get_batch(clip.numbers.tolist()).asnumpy())

    return read


def opencv_reader() -> Read:
    """Raises ImportError."""
    cv2 = import_module("cv2")
    cv2.setNumThreads(1)

    def read(clip: Clip, edge_px: int | None) -> np.ndarray:
        capture, (height_px, width_px) = cv2.VideoCapture(clip.path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]), clip.size(edge_px)
        images = []
        for number in clip.numbers.tolist():
            capture.set(cv2.CAP_PROP_POS_FRAMES, number)
            image = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB)
            images.append(image if edge_px is None else cv2.resize(image, (width_px, height_px), interpolation=cv2.INTER_AREA))
        capture.release()
        return np.stack(images)

    return read


def ffmpeg_seeks(clip: Clip, edge_px: int | None) -> np.ndarray:
    """One process with an input for each frame, sought to half a frame before it."""
    starts_s = np.maximum((clip.numbers - 0.5) / RATE, 0).tolist()
    frames = [ffmpeg.input(clip.path, ss=f"{start_s:.4f}", threads=1)["v:0"].filter("trim", end_frame=1) for start_s in starts_s]
    return _run_ffmpeg(ffmpeg.concat(*[frame.filter("setpts", "PTS-STARTPTS") for frame in frames]), clip, edge_px)


def ffmpeg_selects(clip: Clip, edge_px: int | None) -> np.ndarray:
    """Decodes everything up to the last frame."""
    chosen = "+".join(f"eq(n,{number})" for number in clip.numbers)
    return _run_ffmpeg(ffmpeg.input(clip.path, threads=1)["v:0"].filter("select", chosen), clip, edge_px)


def _run_ffmpeg(frames: Any, clip: Clip, edge_px: int | None) -> np.ndarray:
    height_px, width_px = clip.size(edge_px)
    frames = frames if edge_px is None else frames.filter("scale", width_px, height_px)
    output = frames.output("pipe:", f="rawvideo", pix_fmt="rgb24", fps_mode="passthrough", **{"frames:v": N_FRAMES})
    one_thread = ["-v", "error", "-nostdin", "-filter_threads", "1", "-filter_complex_threads", "1"]
    arguments = ffmpeg.compile(output.global_args(*one_thread), cmd=ffmpeg_program())
    pixels = subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True).stdout
    return np.frombuffer(pixels, np.uint8).reshape(-1, height_px, width_px, 3)


def tools() -> tuple[dict[str, Read], dict[str, str]]:
    """Those that are installed, ours first; and why the others are not measured."""
    readers: dict[str, Read] = {"ours": ours}
    missing: dict[str, str] = {}
    rivals: dict[str, Callable[[], Read]] = {
        "torchcodec, approximate": lambda: torchcodec_reader("approximate"),
        "torchcodec, exact": lambda: torchcodec_reader("exact"),
        "decord": decord_reader,
        "OpenCV, seek": opencv_reader,
    }
    for name, make in rivals.items():
        try:
            readers[name] = make()
        except (ImportError, RuntimeError) as error:
            missing[name] = str(error).strip().splitlines()[0]
    return readers | {"ffmpeg-python, 12 -ss": ffmpeg_seeks, SELECT: ffmpeg_selects}, missing


# --- clips ---


def make_clip(name: str, folder: Path, source: Path | None, *, width_px: int = 1280, height_px: int = 720) -> Clip:
    """Encodes PART_S of the source at most, and repeats its packets at a constant rate; a clip that is there is taken.

    Raises CalledProcessError.
    """
    seconds, gop = GOPS[name]
    part, path = folder / f"part-{seconds}-{gop}.mp4", folder / f"clip-{seconds}-{gop}.mp4"
    n_part = min(seconds, PART_S) * RATE
    clip = Clip(name, str(path), n_part * (seconds * RATE // n_part), width_px, height_px)
    if path.exists():
        return clip
    folder.mkdir(parents=True, exist_ok=True)
    x264 = ["-c:v", "libx264", "-preset", "medium", "-crf", "23", "-g", f"{gop}", "-keyint_min", f"{gop}", "-sc_threshold", "0"]
    quiet = [ffmpeg_program(), "-v", "error", "-nostdin", "-y"]
    pictures = _pictures(source, n_part, width_px=width_px, height_px=height_px)
    subprocess.run([*quiet, *pictures, "-frames:v", f"{n_part}", *x264, "-pix_fmt", "yuv420p", part], check=True)
    unfinished = path.with_name(f"unfinished-{path.name}")
    with av.open(unfinished, "w") as container:
        for number in range(clip.n_shown // n_part):
            with av.open(part) as encoded:
                stream = encoded.streams.video[0]
                copy = container.streams.video[0] if number else container.add_stream_from_template(stream)
                later = round(number * n_part / RATE / float(stream.time_base or 1))
                for packet in encoded.demux(stream):
                    if packet.pts is not None and packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + later, packet.dts + later, copy
                        container.mux(packet)
    part.unlink()
    unfinished.rename(path)
    return clip


def _pictures(source: Path | None, n_frames: int, *, width_px: int, height_px: int) -> list[str]:
    """Arguments of ffmpeg: n_frames or more. Of a folder, its videos of at least that width (else all), in turns."""
    if source is None:
        return ["-f", "lavfi", "-i", f"testsrc2=size={width_px}x{height_px}:rate={RATE},noise=alls=10:allf=t"]
    infos = videos_in(source)
    wide = {path: info for path, info in infos.items() if info.width_px >= width_px} or infos
    paths: list[Path] = []
    for path in itertools.cycle(wide):
        if sum(wide[chosen].n_frames for chosen in paths) >= n_frames:
            break
        paths.append(path)
    inputs = [argument for path in paths for argument in ("-i", str(path))]
    scaled = "".join(f"[{i}:v:0]scale={width_px}:{height_px},setsar=1,format=yuv420p,setpts=N/{RATE}/TB[v{i}];" for i in range(len(paths)))
    joined = "".join(f"[v{i}]" for i in range(len(paths))) + f"concat=n={len(paths)},setpts=N/{RATE}/TB"
    return [*inputs, "-filter_complex", scaled + joined, "-r", f"{RATE}"]


def videos_in(folder: Path) -> dict[Path, VideoInfo]:
    """Files that hold a video, by name. Raises ValueError for none."""
    found: dict[Path, VideoInfo] = {}
    for path in sorted(folder.iterdir()):
        try:
            found[path] = probe(path)
        except VideoDecodeError:
            continue
    if not found:
        raise ValueError(f"{folder} holds no video")
    return found


def link_libav(folder: Path) -> str:
    """Links to the libraries that PyAV carries, under the names torchcodec looks for; what LD_LIBRARY_PATH must hold."""
    folder.mkdir(exist_ok=True)
    carried = Path(av.__file__).parent.parent / "av.libs"
    for library in carried.iterdir():
        if match := re.fullmatch(r"(lib(?:av|sw)[a-z]+)-[0-9a-f]+(\.so\.\d+)\..*", library.name):
            link = folder / (match[1] + match[2])
            link.unlink(missing_ok=True)
            link.symlink_to(library)
    return f"{folder}:{carried}"
