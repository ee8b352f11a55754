"""Of each of the 75 faults: the tests that cover it, or why it does not apply.

The numbers are stable names. A test that names a fault in its own name (test_fault_07_...) counts
by itself; here stand the others.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Test:
    """A test that covers a fault without naming it: file within tests/, and name."""

    __test__ = False  # pytest would collect it by its name

    file: str
    name: str


@dataclass(frozen=True)
class Reason:
    """Why a fault cannot happen here, or is not covered by a test."""

    text: str


LAST = 75

COVERED: dict[int, list[Test | Reason]] = {
    20: [
        Test("test_cli.py", "test_ctrl_c_keeps_the_rounds_that_had_ended"),
        Test(
            "campaign/test_campaign_commands.py",
            "test_fault_20_ctrl_c_is_130_and_says_what_to_type",
        ),
    ],
    21: [
        Reason("to the store, SIGTERM without a handler is the kill of row 1 and 3"),
        Test(
            "campaign/test_campaign_commands.py",
            "test_fault_20_21_signals_stop_a_command_in_a_process_of_its_own",
        ),
    ],
    24: [Reason("scoring under lack of memory belongs to the query's own tests")],
    25: [Reason("scoring under lack of memory belongs to the query's own tests")],
    26: [Reason("training under lack of memory belongs to the training's own tests")],
    28: [Test("test_learner.py", "test_a_model_of_nan_chooses_nothing")],
    29: [Test("test_training.py", "test_trap_a_loss_that_is_not_finite_stops_the_training")],
    30: [Test("test_learner.py", "test_one_class_alone_is_trained_with_a_warning")],
    32: [
        Reason("any error in a training but our own leaves the round in training, as Ctrl-C does"),
        Test(
            "campaign/test_campaign_commands.py",
            "test_fault_32_a_lost_accelerator_is_5_and_asks_for_a_new_process",
        ),
    ],
    33: [
        Test("test_learner.py", "test_same_scores_in_another_batch_size_and_order"),
        Test(
            "campaign/test_campaign_rounds.py",
            "test_fault_02_the_batch_does_not_depend_on_chunks_or_order",
        ),
    ],
    34: [Reason("bitsandbytes is a dependency of the package and runs on a CPU")],
    37: [Test("test_tokens.py", "test_prompt_longer_than_the_context_is_named")],
    38: [Test("test_tokens.py", "test_prompt_longer_than_the_context_is_named")],
    41: [
        Test("test_cli.py", "test_text_of_the_user_cannot_steer_the_terminal"),
        Test(
            "campaign/test_campaign_labelling.py",
            "test_fault_41_text_cannot_steer_the_terminal_or_pass_for_ours",
        ),
    ],
    42: [
        Test("test_report.py", "test_page_is_one_file_with_everything_escaped"),
        Test(
            "campaign/test_campaign_report.py",
            "test_fault_42_page_is_one_file_with_everything_escaped",
        ),
    ],
    43: [Test("test_tokens.py", "test_special_tokens_in_a_users_text_stay_text")],
    51: [Reason("a campaign has no positions: items are known by ids alone (rows 48, 49, 55)")],
    52: [Test("test_learner.py", "test_bad_labelled_data")],
    54: [Test("test_learner.py", "test_probabilities_belong_to_classes")],
    65: [Test("test_families.py", "test_fault_65_without_a_pad_token_answers_are_the_same")],
    66: [Test("test_saving.py", "test_another_base_model_is_refused")],
    68: [
        Test("test_model.py", "test_hub_id_that_cannot_be_had"),
        Reason("retries with back-off are those of huggingface_hub"),
    ],
    69: [
        Test("test_model.py", "test_folders_that_are_no_model"),
        Test("test_model.py", "test_model_that_brings_code_is_refused"),
    ],
    70: [Test("test_tokens.py", "test_fault_70_a_hostile_chat_template_is_stopped")],
    73: [
        Test("campaign/test_campaign_commands.py", "test_fault_73_no_token_is_printed_or_kept"),
        Reason("starlearn has no command that uploads; reports to trackers are switched off"),
    ],
}
