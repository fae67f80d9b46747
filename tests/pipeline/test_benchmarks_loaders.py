"""Annotation files in the formats their authors publish -> items. The rows are made anew: texts of ours, fields of theirs."""

import io
import json
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import BadInputError
from pipeline.benchmarks import captions, questions
from pipeline.benchmarks.items import File, Item, Loaded


def file(name: str, value: Any) -> File:
    return File(name, json.dumps(value, indent=1).encode())


def lines(name: str, *rows: Any) -> File:
    return File(name, "".join(json.dumps(row) + "\n" for row in rows).encode())


def by_id(loaded: Loaded) -> dict[str, Item]:
    found = {item.id: item for item in loaded.items}
    assert len(found) == len(loaded.items)
    return found


def dense(*sentences: str) -> dict[str, Any]:
    return {"duration": 11.0, "timestamps": [[0.0, 3.5]] * len(sentences), "sentences": list(sentences)}


class TestActivityNetCaptions:
    val_1 = file("val_1.json", {"v_a-1": dense("A dog runs.", "  It stops."), "v_b": dense("A cat.")})
    val_2 = file("val_2.json", {"v_a-1": dense("One dog is running.")})

    def test_each_file_gives_a_reference_of_sentences_joined(self) -> None:
        loaded = captions.activitynet_captions([self.val_1, self.val_2])
        found = by_id(loaded)
        assert found["v_a-1"].references == ("A dog runs. It stops.", "One dog is running.")
        assert found["v_b"].references == ("A cat.",)
        assert {item.task for item in loaded.items} == {"caption"} and not loaded.bad
        assert found["v_a-1"].videos == ("v_a-1", "a-1"), "files are called either way"

    def test_the_order_of_files_makes_no_difference(self) -> None:
        one, other = (captions.activitynet_captions(files) for files in ([self.val_1, self.val_2], [self.val_2, self.val_1]))
        assert by_id(one) == by_id(other)

    def test_paragraph_files_and_two_annotators_who_say_the_same(self) -> None:
        paragraphs = file("para.json", {"v_a-1": "A dog runs.   It stops."})
        assert by_id(captions.activitynet_captions([self.val_1, paragraphs]))["v_a-1"].references == ("A dog runs. It stops.",)

    def test_what_is_no_annotation_is_told_and_the_rest_stays(self) -> None:
        value = {"v_a": dense("Fine."), "v_b": {"sentences": []}, "v_c": 7, "v_d": dense("Fine.", " "), "v_e": {"sentences": [None]}}
        loaded = captions.activitynet_captions([file("val.json", value)])
        assert [item.id for item in loaded.items] == ["v_a"]
        assert [key for key, _ in loaded.bad] == ["val.json:v_b", "val.json:v_c", "val.json:v_d", "val.json:v_e"]
        assert loaded.bad[2][1] == "sentences: got ' ', expected a text"


class TestRegions:
    row: ClassVar = {
        "uid": 17,
        "video": "sav_1.mp4",
        "masklet_id": 2,
        "total_frames": 90,
        "caption": "A man waves.",
        "start_frame": 12,
        "end_frame": 35,
    }

    def test_a_span_of_frames_is_one_of_seconds(self) -> None:
        [item] = captions.plm_rcap([lines("rcap.jsonl", self.row)]).items
        assert item.span == (2.0, 6.0), "frames 12 to 35 of 6 a second, both within"
        assert (item.id, item.videos, item.references, item.task, item.told_apart_by) == (
            "17",
            ("sav_1.mp4",),
            ("A man waves.",),
            "caption",
            "17",
        )

    def test_the_whole_video_is_no_span(self) -> None:
        [item] = captions.plm_rcap([lines("rcap.jsonl", self.row | {"start_frame": 0, "end_frame": 89})]).items
        assert item.span == (None, None)

    @pytest.mark.parametrize(
        "wrong",
        [{"start_frame": 36}, {"end_frame": 90}, {"start_frame": -1}, {"end_frame": True}, {"caption": ""}, {"uid": None}, {"video": 3}],
    )
    def test_a_bad_row_is_none(self, wrong: dict[str, Any]) -> None:
        loaded = captions.plm_rcap([lines("rcap.jsonl", self.row, self.row | wrong)])
        assert len(loaded.items) == 1
        [(key, why)] = loaded.bad
        assert key == "rcap.jsonl:2" and next(iter(wrong)) in why

    def test_dense_captions_are_joined_in_the_order_of_their_frames(self) -> None:
        dense_captions = [
            {"start_frame": 30, "end_frame": 89, "caption": "He sits."},
            {"start_frame": 0, "end_frame": 29, "caption": "He waves."},
        ]
        row = {"uid": 5, "video": "sav_2.mp4", "masklet_id": 0, "total_frames": 90, "dense_captions": dense_captions}
        others = [row | {"dense_captions": wrong} for wrong in ([], None, ["He sits."], [{"start_frame": 0, "end_frame": 3}])]
        loaded = captions.plm_rdcap([lines("rdcap.jsonl", row, *others)])
        assert [(item.references, item.span) for item in loaded.items] == [(("He waves. He sits.",), (None, None))]
        assert [key for key, _ in loaded.bad] == ["rdcap.jsonl:2", "rdcap.jsonl:3", "rdcap.jsonl:4", "rdcap.jsonl:5"]

    def test_the_parquet_of_the_hub_is_the_same(self) -> None:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([self.row]), buffer)
        [item], [other] = (captions.plm_rcap([one]).items for one in (File("a", buffer.getvalue()), lines("a", self.row)))
        assert item == other


class TestStyles:
    vdc_row: ClassVar = {"video_id": "x1", "video_name": "x1.mp4"} | {f"{style}_caption": f"The {style}." for style in captions.VDC_STYLES}
    care_row: ClassVar = {
        "video": "v_3_0.mp4", "caption": "All.", "spatial_caption": "Where.", "temporal_caption": "When.",
        "events": ["He comes", "He goes"], "objects": ["There is a hat", "There is a bag"],
    }  # fmt: skip

    def test_vdc_has_five_captions_of_each_video(self) -> None:
        loaded = captions.vdc([lines("VDC_1k.jsonl", self.vdc_row)])
        assert {item.style: item.references for item in loaded.items} == {style: (f"The {style}.",) for style in captions.VDC_STYLES}
        assert {item.videos for item in loaded.items} == {("x1.mp4", "x1")} and {item.task for item in loaded.items} == {"caption"}
        assert len(by_id(loaded)) == 5

    def test_a_missing_style_is_bad_alone(self) -> None:
        loaded = captions.vdc([lines("VDC_1k.jsonl", self.vdc_row | {"camera_caption": None}, {"short_caption": "Nameless."})])
        assert len(loaded.items) == 4
        assert ("VDC_1k.jsonl:1/camera", "camera_caption: got None, expected a text") in loaded.bad
        assert sum(key.startswith("VDC_1k.jsonl:2/") for key, _ in loaded.bad) == 5

    def test_carebench_joins_its_lists(self) -> None:
        loaded = captions.carebench([file("metadata.json", [self.care_row])])
        assert {item.style: item.references for item in loaded.items} == {
            "caption": ("All.",), "spatial": ("Where.",), "temporal": ("When.",),
            "events": ("He comes; He goes",), "objects": ("There is a hat; There is a bag",),
        }  # fmt: skip
        assert {item.videos for item in loaded.items} == {("v_3_0.mp4",)}

    def test_several_captions_are_several_references(self) -> None:
        row = self.care_row | {"caption": ["One.", "Other."], "events": "He comes; He goes", "objects": []}
        loaded = captions.carebench([file("metadata.json", [row])])
        found = {item.style: item.references for item in loaded.items}
        assert found["caption"] == ("One.", "Other.") and found["events"] == ("He comes; He goes",)
        assert [key for key, _ in loaded.bad] == ["metadata.json:1/objects"]


class TestNExTQA:
    csv = File(
        "test.csv",
        b"video,frame_count,width,height,question,answer,qid,type\n"
        b"311,90,640,360,why did he run,late,0,CW\n"
        b'311,90,640,360,"where, then, is it",home,1,DL\n'
        b"312,90,640,360,how many,,2,DC\n",
    )
    more = file("add_reference_answer_test.json", {"311": {"1": "at home", "0": "late"}, "9": {"0": "unasked"}})

    def test_a_second_answer_is_a_reference_where_it_is_another(self) -> None:
        loaded = questions.nextqa([self.more, self.csv])
        found = by_id(loaded)
        assert found["311_0"].references == ("late",)
        assert found["311_1"].references == ("home", "at home")
        assert (found["311_1"].question, found["311_1"].style, found["311_1"].videos) == ("where, then, is it", "DL", ("311",))
        assert loaded.bad == [("test.csv:4", "answer: got '', expected a text")]

    def test_the_multiple_choice_file_is_refused(self) -> None:
        with pytest.raises(BadInputError, match=r"mc\.csv: has options a0 to a4"):
            questions.nextqa([File("mc.csv", b"video,question,answer,qid,type,a0,a1,a2,a3,a4\n1,why,2,0,CW,a,b,c,d,e\n")])
        with pytest.raises(BadInputError, match=r"no \.csv"):
            questions.nextqa([self.more])


class TestActivityNetQA:
    asked = file("test_q.json", [{"video_name": "a-1", "question": "is it red", "question_id": f"v_a-1_{i}"} for i in range(3)])
    answered = file("test_a.json", [{"answer": "no", "type": 3, "question_id": f"v_a-1_{i}"} for i in (1, 0, 7)])

    def test_questions_meet_their_answers(self) -> None:
        loaded = questions.activitynet_qa([self.answered, self.asked])
        assert {item.id: (item.references, item.style, item.videos) for item in loaded.items} == {
            f"v_a-1_{i}": (("no",), "yes/no", ("v_a-1", "a-1")) for i in (0, 1)
        }
        assert [key for key, _ in loaded.bad] == ["test_a.json:3", "test_q.json:3"], "an answer unasked, a question unanswered"

    def test_a_mirror_with_both_in_a_row(self) -> None:
        row = {"video_name": "v_b", "question": "what is it", "question_id": "v_b_1", "answer": "a hat", "type": "5"}
        loaded = questions.activitynet_qa([lines("test.jsonl", row, row | {"question_id": "v_b_2", "type": 9}, {"type": 1})])
        assert [(item.style, item.videos) for item in loaded.items] == [("object", ("v_b", "b"))]
        assert sorted(key for key, _ in loaded.bad) == ["test.jsonl:2", "test.jsonl:3"]

    def test_what_is_asked_or_answered_again_is_bad(self) -> None:
        row = {"video_name": "v_b", "question_id": "v_b_1"}
        asked = file("test_q.json", [row | {"question": f"what is {i}"} for i in range(3)])
        answered = file("test_a.json", [{"answer": answer, "type": 3, "question_id": "v_b_1"} for answer in ("no", "yes")])
        loaded = questions.activitynet_qa([asked, answered])
        assert [(item.question, item.references) for item in loaded.items] == [("what is 0", ("no",))]
        assert loaded.bad == [
            ("test_q.json:2", "question_id 'v_b_1' has its question in test_q.json:1"),
            ("test_q.json:3", "question_id 'v_b_1' has its question in test_q.json:1"),
            ("test_a.json:2", "question_id 'v_b_1' has its answer in test_a.json:1"),
        ]
        both = row | {"question": "what is it", "answer": "no", "type": 3}
        loaded = questions.activitynet_qa([lines("test.jsonl", both, both)])
        assert len(loaded.items) == 1 and [key for key, _ in loaded.bad] == ["test.jsonl:2"]

    def test_questions_without_a_question_id_are_bad_each(self) -> None:
        row = {"video_name": "v_b", "question": "what is it", "answer": "no", "type": 3}
        loaded = questions.activitynet_qa([lines("test.jsonl", row, row, row | {"question_id": 7})])
        assert not loaded.items and [key for key, _ in loaded.bad] == [f"test.jsonl:{line}" for line in (1, 2, 3)]
        assert "question_id: got None, expected a text" in loaded.bad[0][1]


def test_sgqa_with_and_without_a_domain() -> None:
    row = {"uid": "u1", "video": "f5_122_155.mp4", "question": "Is it so?", "answer": "Yes, it is so."}
    loaded = questions.plm_sgqa([lines("sgqa.jsonl", row, row | {"uid": "u2", "domain": "cooking"}, row | {"answer": 1})])
    assert [(item.id, item.style, item.question) for item in loaded.items] == [("u1", "", "Is it so?"), ("u2", "cooking", "Is it so?")]
    assert loaded.bad == [("sgqa.jsonl:3", "answer: got 1, expected a text")]


def test_vidcapbench_is_a_line_per_video() -> None:
    pairs = [
        {"question": "What weather?", "answer": "Rain.", "primary_category": "video content", "sub_category": "background"},
        {"question": "What weather?", "answer": "", "sub_category": "color"},
    ]
    rows = [{"video_dir": "/pfs/Datasets/VidCapBench/videos/T_20.mp4", "QA_pairs": pairs}, {"video_dir": "b.mp4"}, ["b.mp4"]]
    loaded = questions.vidcapbench([lines("AE.jsonl", *rows)])
    assert [(item.videos, item.style, item.references) for item in loaded.items] == [(("T_20.mp4",), "background", ("Rain.",))]
    assert [key for key, _ in loaded.bad] == ["AE.jsonl:1/1", "AE.jsonl:2", "AE.jsonl:3"]


@pytest.mark.parametrize(
    ("load", "data", "says"),
    [
        (captions.activitynet_captions, b"[1]", "expected one object"),
        (captions.activitynet_captions, b"{", "not JSON"),
        (captions.vdc, b"no json\nat all\n", "expected a JSON list, JSON Lines or Parquet"),
        (captions.vdc, b"", "expected a JSON list"),
        (captions.carebench, b"[1,", "not JSON"),
        (questions.plm_sgqa, b"PAR1 and no more", "not a Parquet file"),
        (questions.vidcapbench, b"\xff\xfe", "not UTF-8"),
        (questions.nextqa, b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_its_name(load: Any, data: bytes, says: str) -> None:
    with pytest.raises(BadInputError, match=f"^wrong\\.csv: .*{says}"):
        load([File("wrong.csv", data)])


def test_half_a_surrogate_pair_is_a_bad_row() -> None:
    loaded = questions.plm_sgqa([File("a", b'{"uid": "u", "video": "v", "question": "\\ud800?", "answer": "a"}\n')])
    assert not loaded.items and "surrogates not allowed" in loaded.bad[0][1]


@pytest.mark.parametrize("as_list", [False, True])
def test_half_a_surrogate_pair_anywhere_in_a_row_is_a_bad_row(as_list: bool) -> None:
    good = {"uid": 1, "video": "v", "total_frames": 9, "start_frame": 0, "end_frame": 8, "caption": "One waves."}
    rows = [good, good | {"uid": "\ud800"}, good | {"\ud800": 1}]
    loaded = captions.plm_rcap([file("rcap.json", rows) if as_list else lines("rcap.json", *rows)])
    assert len(loaded.items) == 1 and [key for key, _ in loaded.bad] == ["rcap.json:2", "rcap.json:3"]
    assert all("surrogates not allowed" in why for _, why in loaded.bad)


@pytest.mark.parametrize("name", ["\ud800", "v_\x1b]0;PWNED\x07", "v_\x9b31m"])
def test_a_videos_name_that_cannot_be_stored_or_printed_is_bad(name: str) -> None:
    loaded = captions.activitynet_captions([file("val.json", {"v_a": "Fine.", name: "Not."})])
    assert [item.id for item in loaded.items] == ["v_a"]
    assert [key for key, _ in loaded.bad] == [f"val.json:{name!a}"]
    row = {"uid": "u1", "question": "Is it so?", "answer": "Yes."}
    others = [
        questions.plm_sgqa([lines("a", row | {"video": name}, row | {"video": "a"})]),
        questions.activitynet_qa([lines("a", row | {"video_name": name, "question_id": "q", "type": 3})]),
        questions.vidcapbench([lines("a", {"video_dir": name, "QA_pairs": [row]}, {"video_dir": "a", "QA_pairs": [row]})]),
        captions.vdc([lines("a", {"video_id": name, "short_caption": "Short."}, {"video_id": "a"})]),
        captions.carebench([lines("a", {"video": name, "caption": "All."}, {"video": "a"})]),
        captions.plm_rdcap([lines("a", {"uid": 1, "video": name, "dense_captions": [{"start_frame": 0, "end_frame": 1, "caption": "A"}]})]),
    ]
    assert all(one.bad and not any(name in item.videos for item in one.items) for one in others)
    assert all(why.isprintable() for one in others for _, why in one.bad)


def test_a_count_beyond_all_floats_is_bad() -> None:
    row = {"uid": 1, "video": "v", "total_frames": 10**401, "start_frame": 0, "end_frame": 10**400, "caption": "One waves."}
    loaded = captions.plm_rcap([lines("rcap.jsonl", row)])
    assert not loaded.items and "expected a whole number from 0 to 9007199254740992" in loaded.bad[0][1]
