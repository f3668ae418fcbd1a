//! The table of `docs/choosing.md`, read from the document: what the library, the agent, the proxy and the relay must all go by.

use std::collections::BTreeSet;

/// What can be known of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Nothing speaks against it.
    Passing,
    /// Its first check has not ended.
    Unchecked,
    /// Calls to it have failed too often.
    Ejected,
    /// The registry has lost it together with many others.
    Guarded,
    /// Its active check fails.
    Failing,
    /// Guarded, and a call to it has failed since.
    GuardedFailed,
    /// Drained by an operator.
    Drained,
    /// Of weight 0.
    Weightless,
    /// Tried already, or at its limit: the caller has excluded it.
    Excluded,
    /// Not registered.
    Absent,
}

impl Known {
    /// Everything that can be known.
    pub const ALL: [Self; 10] = [
        Self::Passing,
        Self::Unchecked,
        Self::Ejected,
        Self::Guarded,
        Self::Failing,
        Self::GuardedFailed,
        Self::Drained,
        Self::Weightless,
        Self::Excluded,
        Self::Absent,
    ];
}

/// What can be known where instances are not checked (no rows of `unknown` and `failing`), and nobody is excluded.
pub const WITHOUT_CHECKS: [Known; 7] = [
    Known::Passing,
    Known::Ejected,
    Known::Guarded,
    Known::GuardedFailed,
    Known::Drained,
    Known::Weightless,
    Known::Absent,
];

/// For whom an instance is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Role `normal`; the master stands in where nobody else can.
    Normal,
    /// Role `normal`, without falling back to the master.
    NormalOnly,
    /// Role `master`.
    Master,
    /// Role `all`.
    All,
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
struct Row {
    tier: u8,
    known: Known,
    /// For the master in the place of the instances of the role.
    is_masters: bool,
}

/// The table.
#[derive(Debug)]
pub struct ChoosingTable(Vec<Row>);

impl ChoosingTable {
    /// Reads the document. It panics where the document has another shape than tests know.
    pub fn read() -> Self {
        let text = include_str!("../../../docs/choosing.md");
        let cells = text.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
        let row = |(number, rest): (&str, &str)| {
            let tier = number.trim().parse().ok()?;
            let (who, known) = rest.split_once(" | ")?;
            let known = match known.split(':').next()?.trim() {
                "passing" => Known::Passing,
                "unknown" => Known::Unchecked,
                "ejected" => Known::Ejected,
                "guarded" => Known::Guarded,
                "failing" => Known::Failing,
                "guarded, has failed" => Known::GuardedFailed,
                other => panic!("an unknown standing in docs/choosing.md: {other:?}"),
            };
            Some(Row { tier, known, is_masters: who.contains("master") })
        };
        let rows: Vec<Row> = cells.filter_map(row).collect();
        assert!(rows.iter().map(|row| row.tier).eq(1..=12), "docs/choosing.md has other tiers: {rows:?}");
        Self(rows)
    }

    /// Returns who may be used, by the rows from the first to the last, and of which tier they are. The first of the instances is the master.
    pub fn expected<'a>(&self, asked: Asked, instances: &[(&'a str, Known)]) -> (BTreeSet<&'a str>, Option<u8>) {
        for row in &self.0 {
            let in_row = |is_master: bool| match asked {
                Asked::Normal => is_master == row.is_masters,
                Asked::NormalOnly => !is_master && !row.is_masters,
                Asked::Master => is_master && !row.is_masters && row.known != Known::GuardedFailed,
                Asked::All => !row.is_masters,
            };
            let fits = instances.iter().enumerate().filter(|(at, (_, known))| *known == row.known && in_row(*at == 0));
            let codes: BTreeSet<&str> = fits.map(|(_, (code, _))| *code).collect();
            if !codes.is_empty() {
                return (codes, Some(row.tier));
            }
        }
        (BTreeSet::new(), None)
    }
}

/// Returns every combination of three, the first of which is the master's.
pub fn combinations(master: &[Known], normals: &[Known]) -> Vec<[Known; 3]> {
    let pairs = normals.iter().flat_map(|a| normals.iter().map(move |b| (*a, *b)));
    let all = master.iter().flat_map(|m| pairs.clone().map(move |(a, b)| [*m, a, b]));
    all.collect()
}
