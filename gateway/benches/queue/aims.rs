//! What the queue has promised in figures, and how much of it was measured: the table at the end.

/// One figure, in the arms' order of rounds.
#[derive(Debug)]
pub(crate) struct Aim {
    what: &'static str,
    aim: f64,
    is: Is,
    measured: Vec<f64>,
}

/// On which side of its aim a figure is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Is {
    AtLeast,
    AtMost,
    /// Written down, promised to nobody.
    Told,
}

impl Aim {
    pub(crate) fn at_least(what: &'static str, aim: f64, measured: Vec<f64>) -> Self {
        Self { what, aim, is: Is::AtLeast, measured }
    }

    pub(crate) fn at_most(what: &'static str, aim: f64, measured: Vec<f64>) -> Self {
        Self { what, aim, is: Is::AtMost, measured }
    }

    /// Without an aim.
    pub(crate) fn told(what: &'static str, measured: Vec<f64>) -> Self {
        Self { what, aim: 0.0, is: Is::Told, measured }
    }

    fn row(&self) -> String {
        let middle = median(self.measured.clone());
        let (sign, verdict) = match self.is {
            Is::AtLeast => (">=", if middle >= self.aim { "reached" } else { "missed" }),
            Is::AtMost => ("<=", if middle <= self.aim { "reached" } else { "missed" }),
            Is::Told => return format!("{:<56} {:>12} {:>10.2} {:>8}  {}", self.what, "", middle, "", self.span()),
        };
        let (aim, ratio) = (format!("{sign} {}", self.aim), middle / self.aim);
        format!("{:<56} {aim:>12} {middle:>10.2} {ratio:>8.2}  {} {verdict}", self.what, self.span())
    }

    fn span(&self) -> String {
        let lowest = self.measured.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = self.measured.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!("({lowest:.2} to {highest:.2})")
    }
}

/// Prints them. The ratio is that of the median to the aim.
pub(crate) fn print(aims: &[Aim]) {
    println!("\n{:<56} {:>12} {:>10} {:>8}  lowest to highest", "", "aim", "measured", "ratio");
    aims.iter().for_each(|aim| println!("{}", aim.row()));
}

/// The upper one of the middle.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
