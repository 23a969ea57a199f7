//! The help texts, as a snapshot: a change of the command line is seen in review.

#[test]
fn help_of_every_verb() {
    let mut command = rarefy::cli::command().term_width(100);
    command.build();
    let mut text = command.render_long_help().to_string();
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    for name in names.iter().filter(|n| *n != "help") {
        if let Some(verb) = command.find_subcommand_mut(name) {
            text += &format!("\n──── {name} ────\n{}", verb.clone().term_width(100).render_long_help());
            for inner in verb.get_subcommands().filter(|c| c.get_name() != "help") {
                let help = inner.clone().term_width(100).render_long_help();
                text += &format!("\n──── {name} {} ────\n{help}", inner.get_name());
            }
        }
    }
    // Blanks at line ends are the layout's, not ours.
    let text: Vec<&str> = text.lines().map(str::trim_end).collect();
    insta::assert_snapshot!(text.join("\n"));
}
