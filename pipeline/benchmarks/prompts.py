"""The words of each benchmark's prompts. They are measurements' settings, so they are exact, misspellings and all.

paper   arXiv 2606.04351, appendix B.1 (captions) and B.2 (questions). B.2 sets the instruction on a line of its own below the question;
        the project page and the published example script (Sarvesh-369/video2lora.github.io, script.js) have question, one space,
        instruction, and so do we.
own     lmms-eval's where it has the benchmark (lmms_eval/tasks: vdc, nextqa, activitynetqa, plm_videobench), else the benchmark's own
        repository. For VDC it draws one of 16 to 24 wordings at random for each video; ours is the first of each list. CaReBench asks its
        captioners for one description, from which all is scored; the words are those for MiniCPM-V, InternVL2 and Tarsier.
        VidCapBench asks its questions of a judge who reads a caption: the question alone.
"""

from infra.errors import BadInputError

IN_ONE_SENTENCE = "{question} Answer only the question, in one sentence."

PAPER = {
    "activitynet_captions": {"": "Describe what is happening in this video."},
    "plm_rdcap": {"": "Describe what happens in this video."},
    "plm_rcap": {"": "Describe what happens in this video clip."},
    "vdc": {
        "short": "Summarize this video in one detailed sentence.",
        "detailed": "Describe this video in detail.",
        "camera": "Describe the camera work, framing, and viewpoint in this video.",
        "background": "Describe the background, setting, and environment in this video.",
        "main_object": "Describe the main subject and its actions in this video.",
    },
    "carebench": {
        "caption": "Describe the video in as much useful visual detail as possible. Include the main activity, visible people or objects, "
        "scene context, appearance, and any important visual details that help explain what is happening.",
        "spatial": "Describe the spatial layout in as much useful detail as possible: where the people, objects, and scene elements are "
        "located, how they are positioned relative to each other, and what parts of the scene are in the foreground, background, left, "
        "right, center, above, or below.",
        "temporal": "Describe the temporal progression in as much useful detail as possible. Explain what happens over time, the order of "
        "visible actions, and how the scene or subjects change from the beginning to the end.",
        "events": "Describe the key visible events in chronological order. Include all important actions and changes you can observe, with "
        "enough detail to distinguish each event clearly.",
        "objects": "Describe the important visible objects and entities in the video in as much useful detail as possible. Include their "
        "appearance, location, and role in the scene when visible.",
    },
    "nextqa": {"": IN_ONE_SENTENCE},
    "activitynet_qa": {"": IN_ONE_SENTENCE},
    "plm_sgqa": {"": IN_ONE_SENTENCE},
    "vidcapbench": {"": IN_ONE_SENTENCE},
}

OWN = {
    "vdc": {
        "short": "Write a one-sentence summary of the video.",
        "detailed": "Please imagine the video based on the sequence of frames, and provide a faithfully detailed description of this video "
        "in more than three sentences.",
        "camera": "Summary of the view shot, camera movement and changes in shooting angles in the sequence of video frames.",
        "background": "The images are given containing equally spaced video frames.Summary of the background. This should also include the "
        "objects, location, weather, and time.",
        "main_object": "Description of the main subject actions or status sequence. This suggests including the main subjects (person, "
        "object, animal, or none) and their attributes, their action, their position, and movements during the video frames.",
    },
    "carebench": {"": "Describe the video in detail."},
    "nextqa": {"": "{question}\nAnswer a question using a short phrase or sentence."},
    "activitynet_qa": {"": "{question}? Answer the question using a single word or phrase."},
    "plm_sgqa": {
        "": "The following question is asked by the camera wearer at the end of the video.  Provide a detailed answer even if unsure.  "
        "Try to answer in around 20-30 words.  Now answer the following question based on the video content: {question}"
    },
    "vidcapbench": {"": "{question}"},
}

WITHOUT_OWN = {
    "activitynet_captions": "it is older than prompted models and publishes no prompt",
    "plm_rdcap": "its prompt asks about a red rectangle in the frames, which is not drawn here",
    "plm_rcap": "its prompt asks about a red rectangle in the frames, which is not drawn here",
}


def prompts_of(name: str, prompts: str) -> dict[str, str]:
    """Style -> prompt of a benchmark; "" stands for every style that is not named. Raises BadInputError where it has none of its own."""
    if prompts == "own" and name in WITHOUT_OWN:
        raise BadInputError(f"{name}: --prompts own: {WITHOUT_OWN[name]}; use --prompts paper")
    return (OWN if prompts == "own" else PAPER)[name]


def worded(question: str, style: str, prompts: dict[str, str]) -> str:
    """What is asked, in full."""
    return prompts.get(style, prompts.get("", "")).replace("{question}", question)
