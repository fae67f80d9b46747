"""What a run says it cost: sums add up, a day is a day, and the sample is the same wherever the targets were made."""

from teacher.measures import Measures, sample_lines, sampled, summed, told


def test_a_days_worth_is_reckoned_from_the_seconds_engines_were_up() -> None:
    block = {"engine_s": 6.0, "prepare_s": 3.0, "waiting_s": 1.0, "startup_s": 100.0, "n_starts": 1.0, "n_videos": 2.0, "video_s": 50.0}
    both = summed({name: 2 * value for name, value in block.items()} | {"n_tokens": 400.0, "n_prompt_tokens": 8000.0, "rows": 7.0})
    lines = told(both, gpus_per_engine=0.0)
    assert lines[0].startswith("17,280 videos and 120.0 hours of video per day per engine; 20.0 tokens/s written and 400.0 read")
    assert "wrote for 60.0 %" in lines[1] and "prepared for 30.0 %" in lines[1] and "next block for 10.0 %" in lines[1]
    assert "2 start(s) took 200.0 s more" in lines[1]
    assert told(both, gpus_per_engine=2.0)[0].startswith("8,640 videos and 60.0 hours of video per day per GPU")


def test_a_run_that_asked_nothing_tells_nothing() -> None:
    assert told(Measures(), gpus_per_engine=0.0) == []


def test_ten_targets_are_sampled_by_the_seed_whatever_their_order() -> None:
    keys = [f"v{i}/p/1" for i in range(200)]
    found = sampled(keys)
    assert len(set(found)) == 10 and set(found) < set(keys)
    assert sampled(keys[::-1]) == found
    assert sampled(keys, seed=1) != found
    assert sample_lines([{"video_id": "v7", "prompt": "What?", "target": "A dog."}]) == ["  v7 | What? | A dog."]
