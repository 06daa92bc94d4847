//! Edge: the project's documents: links between them lead somewhere.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The documents: Markdown files of the project's root and of docs/.
fn documents() -> Vec<PathBuf> {
    let markdown = |dir: PathBuf| {
        fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
    };
    markdown(project()).chain(markdown(project().join("docs"))).collect()
}

/// Where the links of a document lead that stay within the project.
fn links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .filter(|target| !target.contains("://"))
        .collect()
}

/// The anchors of a document's headings, as they are made of them where documents are shown.
fn anchors(text: &str) -> Vec<String> {
    let anchor = |heading: &str| {
        heading
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches('#')))
        .collect()
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let documents = documents();
    assert!(documents.len() > 8, "{documents:?}");
    let mut broken = Vec::new();
    for document in &documents {
        let text = fs::read_to_string(document).unwrap();
        for link in links(&text) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => document.clone(),
                file => document.parent().unwrap().join(file),
            };
            let leads = match anchor {
                "" => target.exists(),
                anchor => fs::read_to_string(&target)
                    .is_ok_and(|text| anchors(&text).iter().any(|known| known == anchor)),
            };
            if !leads {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn every_manual_is_linked_from_the_readme() {
    let readme = fs::read_to_string(project().join("README.md")).unwrap();
    for document in documents() {
        let path = document.strip_prefix(project()).unwrap().to_str().unwrap().to_owned();
        assert!(
            path == "README.md" || readme.contains(&format!("({path})")),
            "README.md does not mention {path}"
        );
    }
}
