"""The numbers of arXiv 2606.04351, as data, to stand beside ours where the model is the paper's: tables 1 to 4, figures 2 and 3, 5.6, C.

Every benchmark has 500 examples (VDC and CaReBench 500 a style, VidCapBench 1,523 questions about 100 videos), the base reads at most 12
frames of 384 px, and the judge is a Qwen3-VL-30B. Names are those of `video2lora benchmark list`.
"""

from dataclasses import dataclass

MODELS = ("500M", "2.2B")
AVERAGE = "average"
"""The last line of tables 1 and 4: of the benchmarks, each counting once; but of table 4's judge, of the questions (VidCapBench has half of
them), as its own lines show. Each benchmark once, it would be 0.479 and 0.464 at 500M, 0.567 and 0.478 at 2.2B."""


def model_of(vlm: str) -> str | None:
    """Which of the paper's models a name or folder of a VLM is; None for any other."""
    name = vlm.rstrip("/").rsplit("/", 1)[-1]
    return next((model for model in MODELS if name.startswith(f"SmolVLM2-{model}")), None)


@dataclass(frozen=True)
class Compared:
    """A line of tables 1 and 4: ours is the adapter, `low` and `high` bound ours - base at 95 %."""

    base: float
    ours: float
    difference: float
    low: float
    high: float
    equivalent: bool = True
    noninferior: bool = True


CAPTIONS = {  # table 1
    ("500M", "judge"): {
        "activitynet_captions": Compared(0.428, 0.356, -0.072, -0.104, -0.041),
        "plm_rdcap": Compared(0.308, 0.263, -0.045, -0.069, -0.021),
        "plm_rcap": Compared(0.252, 0.242, -0.011, -0.031, 0.009),
        "vdc": Compared(0.515, 0.406, -0.108, -0.118, -0.098),
        "carebench": Compared(0.334, 0.278, -0.056, -0.067, -0.045),
        AVERAGE: Compared(0.367, 0.309, -0.058, -0.078, -0.039),
    },
    ("2.2B", "judge"): {
        "activitynet_captions": Compared(0.576, 0.492, -0.084, -0.113, -0.057),
        "plm_rdcap": Compared(0.326, 0.316, -0.010, -0.032, 0.012),
        "plm_rcap": Compared(0.270, 0.287, 0.017, 0.001, 0.034),
        "vdc": Compared(0.539, 0.511, -0.028, -0.037, -0.019),
        "carebench": Compared(0.437, 0.369, -0.068, -0.078, -0.058),
        AVERAGE: Compared(0.430, 0.395, -0.035, -0.052, -0.018),
    },
    ("500M", "token_f1"): {
        "activitynet_captions": Compared(0.236, 0.243, 0.007, 0.002, 0.012),
        "plm_rdcap": Compared(0.189, 0.198, 0.009, 0.005, 0.013),
        "plm_rcap": Compared(0.177, 0.203, 0.026, 0.021, 0.031),
        "vdc": Compared(0.315, 0.288, -0.027, -0.030, -0.025),
        "carebench": Compared(0.295, 0.275, -0.020, -0.023, -0.017),
        AVERAGE: Compared(0.243, 0.242, -0.001, -0.005, 0.003),
    },
    ("2.2B", "token_f1"): {
        "activitynet_captions": Compared(0.263, 0.256, -0.007, -0.012, -0.002),
        "plm_rdcap": Compared(0.198, 0.207, 0.009, 0.005, 0.013),
        "plm_rcap": Compared(0.199, 0.204, 0.005, 0.001, 0.010),
        "vdc": Compared(0.297, 0.304, 0.007, 0.003, 0.010),
        "carebench": Compared(0.292, 0.279, -0.013, -0.015, -0.010),
        AVERAGE: Compared(0.250, 0.250, 0.000, -0.004, 0.004),
    },
}

QUESTIONS = {  # table 4
    ("500M", "judge"): {
        "nextqa": Compared(0.501, 0.547, 0.046, 0.007, 0.084),
        "activitynet_qa": Compared(0.524, 0.541, 0.016, -0.031, 0.064),
        "plm_sgqa": Compared(0.390, 0.317, -0.074, -0.113, -0.034),
        "vidcapbench": Compared(0.502, 0.451, -0.050, -0.071, -0.030),
        AVERAGE: Compared(0.487, 0.460, -0.027, -0.043, -0.011),
    },
    ("2.2B", "judge"): {
        "nextqa": Compared(0.597, 0.610, 0.013, -0.022, 0.048),
        "activitynet_qa": Compared(0.627, 0.531, -0.096, -0.144, -0.049),
        "plm_sgqa": Compared(0.493, 0.295, -0.198, -0.236, -0.161, equivalent=False, noninferior=False),
        "vidcapbench": Compared(0.551, 0.475, -0.076, -0.096, -0.055),
        AVERAGE: Compared(0.562, 0.477, -0.085, -0.101, -0.069),
    },
    ("500M", "token_f1"): {
        "nextqa": Compared(0.129, 0.068, -0.061, -0.076, -0.046, equivalent=False, noninferior=False),
        "activitynet_qa": Compared(0.197, 0.023, -0.174, -0.199, -0.149, equivalent=False, noninferior=False),
        "plm_sgqa": Compared(0.081, 0.225, 0.145, 0.131, 0.158, equivalent=False),
        "vidcapbench": Compared(0.216, 0.209, -0.007, -0.019, 0.004),
        AVERAGE: Compared(0.156, 0.131, -0.024, -0.041, -0.008),
    },
    ("2.2B", "token_f1"): {
        "nextqa": Compared(0.140, 0.076, -0.063, -0.079, -0.048, equivalent=False, noninferior=False),
        "activitynet_qa": Compared(0.149, 0.013, -0.136, -0.156, -0.117, equivalent=False, noninferior=False),
        "plm_sgqa": Compared(0.092, 0.203, 0.111, 0.098, 0.124, equivalent=False),
        "vidcapbench": Compared(0.196, 0.218, 0.022, 0.010, 0.033),
        AVERAGE: Compared(0.144, 0.128, -0.017, -0.032, -0.002),
    },
}

STYLES = {  # tables 2 and 3: base, ours; the judge's score
    "500M": {
        "vdc": {
            "short": (0.629, 0.535), "detailed": (0.476, 0.401), "camera": (0.310, 0.131), "background": (0.642, 0.523),
            "main_object": (0.517, 0.442),
        },
        "carebench": {
            "caption": (0.418, 0.324), "events": (0.201, 0.169), "objects": (0.368, 0.327), "spatial": (0.424, 0.329),
            "temporal": (0.260, 0.242),
        },
    },
    "2.2B": {
        "vdc": {
            "short": (0.556, 0.579), "detailed": (0.526, 0.463), "camera": (0.478, 0.392), "background": (0.588, 0.606),
            "main_object": (0.546, 0.514),
        },
        "carebench": {
            "caption": (0.465, 0.400), "events": (0.340, 0.267), "objects": (0.457, 0.392), "spatial": (0.519, 0.426),
            "temporal": (0.404, 0.360),
        },
    },
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A cell of figure 3, VDC background: token F1 ours - base, times faster to the first token, times fewer input tokens."""

    token_f1: float
    faster: int
    fewer_tokens: int


EDGES_PX = (224, 336, 512, 1024)
_F1 = {  # of a frame cap, by EDGES_PX
    "500M": {
        8: (-0.04, -0.04, -0.04, -0.05), 12: (-0.04, -0.04, -0.05, -0.05), 24: (-0.05, -0.05, -0.05, 0.06), 48: (-0.04, -0.04, -0.04, 0.12),
        128: (-0.03, -0.05, -0.03, 0.13), 256: (-0.03, -0.05, -0.04, 0.13), 512: (-0.03, -0.05, -0.04, 0.13),
        1024: (-0.03, -0.05, -0.04, 0.13),
    },
    "2.2B": {
        8: (0.05, 0.08, 0.03, 0.02), 12: (0.03, 0.04, 0.0, -0.02), 24: (0.0, 0.02, -0.01, 0.22), 48: (0.0, 0.01, 0.17, 0.22),
        128: (0.0, 0.0, 0.17, 0.21), 256: (0.0, 0.0, 0.17, 0.21), 512: (0.0, 0.0, 0.17, 0.21), 1024: (0.0, 0.0, 0.17, 0.21),
    },
}  # fmt: skip
_FASTER = {
    "500M": {
        8: (6, 8, 6, 7), 12: (4, 6, 5, 7), 24: (4, 5, 4, 9), 48: (5, 5, 5, 14), 128: (5, 7, 6, 16), 256: (5, 6, 5, 17), 512: (5, 8, 6, 17),
        1024: (7, 5, 6, 16),
    },
    "2.2B": {
        8: (10, 10, 13, 12), 12: (9, 6, 14, 23), 24: (9, 8, 25, 40), 48: (10, 9, 38, 62), 128: (17, 15, 43, 79), 256: (11, 14, 44, 79),
        512: (12, 14, 38, 72), 1024: (13, 13, 46, 76),
    },
}  # fmt: skip
_FEWER = {
    "500M": {
        8: (33, 33, 33, 138), 12: (48, 48, 48, 204), 24: (86, 86, 86, 369), 48: (141, 141, 141, 610),
        **dict.fromkeys((128, 256, 512, 1024), (165, 165, 165, 709)),
    },
    "2.2B": {
        8: (40, 40, 172, 274), 12: (58, 58, 254, 407), 24: (104, 104, 460, 748), 48: (171, 171, 761, 1272),
        **dict.fromkeys((128, 256, 512, 1024), (200, 200, 893, 1507)),
    },
}  # fmt: skip
SWEEP = {
    (model, cap, edge_px): Cell(of[cap][i], _FASTER[model][cap][i], _FEWER[model][cap][i])
    for model, of in _F1.items()
    for cap in of
    for i, edge_px in enumerate(EDGES_PX)
}

AMORTISED_S = {  # figure 2b: ours, by number of questions; the base's at one question is 6.79 and 7.44
    "500M": {1: 5.70, 2: 2.94, 3: 2.02, 5: 1.29, 10: 0.74, 15: 0.52, 20: 0.46},
    "2.2B": {1: 6.59, 2: 3.38, 5: 1.44, 10: 0.80, 15: 0.55, 20: 0.46},
}
BASE_S = {"500M": 6.79, "2.2B": 7.44}

COMPOSED_F1 = {"500M": (0.206, 0.221), "2.2B": (0.211, 0.245)}
"""Section 5.6: two chunks composed, and the whole video in one adapter; VDC short and detailed, 100 videos each, 12 frames an adapter."""

PRUNED_F1 = {  # appendix C: 500 examples of ActivityNet Captions, the 2.2B model alone
    "2.2B": {
        "none": 0.0561, "top-1": 0.0894, "top-2": 0.1097, "top-4": 0.1196, "top-8": 0.1264, "all": 0.1262, "bottom-8": 0.1128,
        "random-8": 0.1215, "but-the-strongest": 0.1317,
    },
}  # fmt: skip
