//! `orlop completion`, as a shell uses it.

use std::process::Command;

use orlop_tests::binary;

/// What a shell is told.
fn script(shell: &str) -> String {
    let output = Command::new(binary().unwrap()).args(["completion", shell]).output().unwrap();
    assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What bash offers for the last of these words.
fn offered(words: &[&str]) -> Vec<String> {
    let (current, before) = (words[words.len() - 1], words[words.len() - 2]);
    let complete = format!(
        "{}\nCOMP_WORDS=({}); COMP_CWORD={}\n_orlop orlop {current} {before}\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script("bash"),
        words.join(" "),
        words.len() - 1,
    );
    let output = Command::new("bash").args(["--norc", "-c", &complete]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_shell_completes_commands_and_their_options() {
    assert_eq!(offered(&["orlop", "sta"]), ["status"]);
    assert_eq!(offered(&["orlop", "status", "--conte"]), ["--context"]);
    assert_eq!(offered(&["orlop", "workloads", "--output", "y"]), ["yaml"]);
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = script(shell);
        for word in ["workloads", "kubeconfig"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
    }
}
