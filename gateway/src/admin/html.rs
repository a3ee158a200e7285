//! /tenants for a person: a table without a script, for a terminal's browser as well.

use super::view::{Report, TenantView, items_name};
use crate::base::Signal;

const STYLE: &str = "\
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:2rem}\
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.3rem .9rem .3rem 0;text-align:left;vertical-align:top;\
border-bottom:1px solid #8884}th{font-weight:600}td{font-variant-numeric:tabular-nums}small{opacity:.7}";

/// The whole document; its style carries `nonce`.
pub(super) fn tenants(report: &Report, nonce: &str) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Tenants · Pillion</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><style nonce=\"{nonce}\">{STYLE}</style>\
         <h1>Tenants</h1><p>Pillion {}, up {} s. <a href=\"/\">Live page</a>, <a href=\"/tenants?format=json\">JSON</a>.</p>",
        report.node.version, report.node.uptime_seconds
    );
    out.push_str("<table><thead><tr>");
    for heading in
        ["Tenant", "Pod", "State", "Shim", "Accepted", "Refused", "Delivered", "Queued", "Dead letters", "Destinations"]
    {
        out.push_str(&format!("<th scope=\"col\">{heading}</th>"));
    }
    out.push_str("</tr></thead><tbody>");
    for tenant in &report.tenants {
        row(&mut out, tenant);
    }
    out.push_str("</tbody></table></html>\n");
    out
}

fn row(out: &mut String, tenant: &TenantView) {
    let shim = match (tenant.shim_connected, tenant.mode.as_str()) {
        (false, _) => "none".to_owned(),
        (true, mode) => format!("{mode}, {} connections", tenant.connections),
    };
    let accepted: Vec<_> = Signal::ALL
        .into_iter()
        .map(|signal| format!("{} {}", tenant.accepted.by_signal()[signal.index()], items_name(signal)))
        .collect();
    let refused: Vec<_> = tenant.refused_requests.iter().filter(|(_, count)| **count > 0).collect();
    let refused: Vec<_> = refused.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    let destinations: Vec<_> = tenant
        .destinations
        .iter()
        .map(|at| {
            let error = at.last_error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
            format!("{}: {}{error}, difference {}", at.name, at.state, at.balance.difference)
        })
        .collect();
    out.push_str("<tr>");
    for cell in [
        tenant.name.clone(),
        pod(tenant),
        tenant.state.to_owned(),
        shim,
        accepted.join(", "),
        if refused.is_empty() { "none".to_owned() } else { refused.join(", ") },
        tenant.delivered.total().to_string(),
        tenant.queued_items.to_string(),
        tenant.dead_letters.to_string(),
        destinations.join("; "),
    ] {
        out.push_str("<td>");
        escape(out, &cell);
        out.push_str("</td>");
    }
    out.push_str("</tr>");
}

/// Uid, ServiceAccount and volume, as far as they are known.
fn pod(tenant: &TenantView) -> String {
    let account = tenant.service_account.as_ref().map(|account| format!("service account {account}"));
    let volume = tenant.volume.as_ref().map(|volume| match volume.superseded {
        0 => format!("volume {}", volume.state),
        older => format!("volume {}, {older} older", volume.state),
    });
    let known: Vec<_> = [tenant.uid.clone(), account, volume].into_iter().flatten().collect();
    known.join(", ")
}

fn escape(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // They would vanish, or move the cursor of a terminal.
            control if control.is_control() => out.push_str(&format!("\\u{{{:x}}}", u32::from(control))),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Made;
    use super::*;

    /// Scenario: a backend puts markup into its error message.
    /// Guarantees: it is shown, not run; the rest of the table is there.
    #[test]
    fn what_others_wrote_is_text() {
        let made = Made { error: "<script>alert(1)</script>&\"'\u{0}".to_owned(), ..Made::default() };
        let html = tenants(&Report::gather(&made.sources()), "n0");
        assert!(!html.contains("<script"), "{html}");
        assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#39;\\u{0}"), "{html}");
        for text in [
            "shop/cart",
            "1d0c, service account carts, volume served, 1 older",
            "throttled",
            "100 spans, 20 points, 3 logs",
            "4 quota",
            "backend: broken",
        ] {
            assert!(html.contains(text), "{text} in {html}");
        }
    }
}
