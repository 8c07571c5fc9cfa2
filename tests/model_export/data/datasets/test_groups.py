"""One video is one group, however its files are spelled; and the groups of the official lists."""

import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from model_export.data.datasets import Side, group_of, hmdb51, ucf101
from model_export.data.datasets.names import look

ENDING = "walk_f_cm_np1_ba_med_3"


class TestUcf101:
    @pytest.mark.parametrize(
        "stem",
        (
            "v_Diving_g08_c02",
            "V_DIVING_G08_C02",
            "v-diving-g8-c2",
            "v Diving g008 c0002",
            "Diving.g08.c02",
            "v_DivingG08C02",
            "v_Ｄｉｖｉｎｇ_g０８_c０２",
            "v_Div\u200bing_g08_c02",
            "v_Diving_g08_c02 (1)",
            "g08_c02",
        ),
    )
    def test_spelling_does_not_count(self, stem: str) -> None:
        assert group_of("Diving", stem) == "v_diving_g08"

    @pytest.mark.parametrize("stem", ("v_Diving_g80_c02", "v_Diving_g88_c02", "v_Punch_g08_c02", "v_Diving2_g08_c02"))
    def test_other_numbers_and_classes_are_other_groups(self, stem: str) -> None:
        assert group_of("Diving", stem) != "v_diving_g08"

    def test_cuts_of_one_video_in_two_classes_are_one_group(self) -> None:
        assert group_of("frying", "v_kitchen_g01_c01") == group_of("washing", "v_Kitchen_g1_c02")


class TestHmdb51:
    @pytest.mark.parametrize(
        "film",
        (
            "RETURN_OF_THE_KING",
            "Return_of_the_King_1",
            "Return_of_the_King_13",
            "return of the king 013",
            "Return-of-the-King.02",
            "ReturnOfTheKing2",
            "Return_of_the_King_(Part_4)",
            "Return_of_the_King_pt4",
            "Return_of_the_King_CD1",
            "Return_of_the_King_II",
            "Return_of_the_King_3_of_16",
            "Return_of_the_King_Part_1_[HD]_avi",
            "Return_of_the_King_１２",
        ),
    )
    def test_parts_of_a_film_are_one_group(self, film: str) -> None:
        assert group_of("walk", f"{film}_{ENDING}") == "returnoftheking"
        assert group_of("walk", f"{film}_{ENDING}".upper()) == "returnoftheking"

    @pytest.mark.parametrize(
        ("one", "other"),
        (
            ("The_Matrix_2", "The_Matrix_Revolutions_2"),
            ("Oceans11", "Oceans12"),
            ("Scaramouche__1952", "Scaramouche__1923"),
            ("21", "22"),
            ("50_FIRST_DATES", "FIRST_DATES"),
        ),
    )
    def test_films_of_other_titles_are_other_groups(self, one: str, other: str) -> None:
        assert group_of("walk", f"{one}_{ENDING}") != group_of("walk", f"{other}_{ENDING}")

    def test_the_class_is_no_part_of_the_film_even_if_its_folder_was_renamed(self) -> None:
        groups = {
            group_of(label, f"April_09_{name}_u_nm_np1_ba_goo_0")
            for label, name in (("brush_hair", "brush_hair"), ("combing", "brush_hair"), ("draw_sword", "draw_sword"))
        }
        assert groups == {"april"}
        assert group_of("juggle", "April_09_juggle_u_nm_np1_ba_goo_0") == "april", "a class of one's own"


class TestOwnClips:
    @pytest.mark.parametrize(
        "stem",
        (
            "kitchen part 1",
            "Kitchen_Part_02",
            "KITCHEN-PART-Ⅲ",
            "kitchenPart2",
            "kitchen pt2",
            "kitchen.cd1",
            "Kitchen (part two), fried",
        ),
    )
    def test_parts_of_a_video_are_one_group_in_whichever_class(self, stem: str) -> None:
        assert group_of("frying", stem) == group_of("washing", stem) == "kitchen"

    def test_numbered_clips_stay_apart(self) -> None:
        stems = [
            *(f"squat_{number:03}" for number in range(1, 201)),
            *(f"squat ({number})" for number in range(1001, 1101)),
            *("GOPR0123", "GOPR0124", "VID_20260101_120000", "VID_20260102_120000", "1_1", "11", "part 1", "rampart 2"),
        ]
        groups = {group_of("squats", stem) for stem in stems}
        assert len(groups) == len(stems)
        assert groups.isdisjoint(group_of("lunges", stem) for stem in stems)

    def test_names_without_a_letter_or_number_stay_apart(self) -> None:
        assert group_of("a", "!!!") != group_of("a", "???")

    def test_unicode_forms_are_one(self) -> None:
        forms = [unicodedata.normalize(form, "Küche Teil 1") for form in ("NFC", "NFD")]
        assert forms[0] != forms[1]
        assert {group_of("frying", form) for form in forms} == {"küche"}


class TestClassNames:
    @pytest.mark.parametrize(
        "name", ("push up", "Push-Up", "PUSH_UP", "pushup", "PushUp", "Ｐｕｓｈ　Ｕｐ", "push\u200bup")
    )
    def test_spellings_of_one_class_look_equal(self, name: str) -> None:
        assert look(name) == "pushup"

    @pytest.mark.parametrize(
        ("one", "other"), (("A+", "A-"), ("level 1-1", "level 11"), ("!", "?"), ("कि", "का"), ("👍", "👎"))
    )
    def test_different_classes_do_not_look_equal(self, one: str, other: str) -> None:
        assert look(one) != look(other)


class TestOfficialLists:
    @pytest.mark.parametrize("number", (1, 2, 3))
    def test_no_video_of_ucf101_is_trained_on_and_tested(self, shared: Path, number: int) -> None:
        split = ucf101.read_split(shared / "splits" / "ucfTrainTestlist", number)
        train, test = (
            {group_of(label, stem) for (label, stem), at in split.sides.items() if at is side}
            for side in (Side.TRAIN, Side.TEST)
        )
        assert len(train | test) == 101 * 25
        assert train.isdisjoint(test)

    @pytest.mark.parametrize(("number", "leaked", "in_class"), ((1, 545, 158), (2, 602, 143), (3, 605, 158)))
    def test_films_of_hmdb51_are_trained_on_and_tested(
        self, shared: Path, number: int, leaked: int, in_class: int
    ) -> None:
        """The figures of docs/paper.md and docs/training.md."""
        split = hmdb51.read_split(shared / "splits" / "hmdb51", number)
        train, test = (
            [(label, group_of(label, stem)) for (label, stem), at in split.sides.items() if at is side]
            for side in (Side.TRAIN, Side.TEST)
        )
        trained_on = {film for _, film in train}
        assert len(test) == 1530
        assert sum(film in trained_on for _, film in test) == leaked
        assert sum(map(frozenset(train).__contains__, test)) == in_class

    def test_hmdb51_has_one_group_for_each_film(self, shared: Path) -> None:
        found = Counter(group_of(*clip) for clip in hmdb51.read_split(shared / "splits" / "hmdb51", 1).sides)
        assert (found.total(), len(found)) == (6766, 1257)
        # Counted by hand in the lists: 13 numbered files and one in capitals, and so on.
        films = {
            "returnoftheking": 124,
            "thematrix": 54,
            "castaway": 32,
            "iamlegend": 37,
            "oceans12": 18,
            "narcotic1967": 7,
        }
        assert {film: found[film] for film in films} == films

    def test_the_classes_of_both_data_sets_do_not_look_equal(self, shared: Path) -> None:
        ucf = {label for label, _ in ucf101.read_split(shared / "splits" / "ucfTrainTestlist", 1).sides}
        hmdb = {label for label, _ in hmdb51.read_split(shared / "splits" / "hmdb51", 1).sides}
        assert (len(ucf), len(hmdb)) == (101, 51)
        assert len({look(label) for label in ucf}) == 101
        assert len({look(label) for label in hmdb}) == 51
